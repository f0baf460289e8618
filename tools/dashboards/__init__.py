"""The Grafana dashboards as a program: `python -m tools.dashboards` writes their files.

A panel is a call with its query, unit, description and documentation. `parts` has the kinds of
panels with what all of a kind have in common, `queries` the PromQL that several share, and
`api_key_metrics`, `gateway_health` and `one_key` are the dashboards. The JSON in
grafana/dashboards and the tables of panels in grafana/README.md are written from here; a test
compares.

Built with Grafana's own `grafana-foundation-sdk`, so that a name or value that Grafana does not
know is an error of mypy.
"""
