"""The orders, explained; `--help` prints this."""

GRAMMAR = """\
Orders (x-sim)
  Written "name=value; flag; name=value" in the request's header x-sim, in the body's field
  "x_sim", or behind the model's name: "sim-model?status=429&retry-after=7" ("&" or ";"
  between them, percent-decoded). The header wins over the body, the body over the model.

 what is answered
  events=N         pieces of content (default: the words of the made-up sentence)
  size=BYTES       length of each piece of content; length of the body of an echo
  prompt=N completion=N cached[=N] reasoning[=N] seconds=N   use to report (cached alone:
                   a quarter of the prompt, reasoning alone: 4)
  book=TAG         the books' tag, before x-sim-book and "user"
  answered-model=NAME   model named in the answer, where it is not the one asked for
  style=openai|groq     dialect (default: groq below /openai/v1, openai below /v1)
  echo[=raw]       answer with the request itself, as JSON or (raw) its body's bytes
  no-usage, usage-null  use is left out, or null
  groq-error       the last Groq chunk has x_groq.error where x_groq.usage would be
  status=N         this status; 400 and above with an error body
  code=, type=, message=   of that error body
  retry-after=V, should-retry=true|false   headers to go with it
  set=NAME:VALUE   one more response header (may be repeated)
  content-type=V   in place of the right one
  redirect=URL     307 to there
  malformed-json   the JSON breaks off in the middle (framing is right)
  error-event[=N]  an error event in the stream after N events (2), then its end
  no-done          the stream ends without "data: [DONE]"
  stamp            each event has "sim_t": time.time() of its sending
  crlf, cr         the stream's lines end so, in place of LF
  comment[=N]      a line ": keep-alive" before every N-th event (1)
  no-space         "data:{" in place of "data: {"
  multi-data       each event's JSON over several "data:" lines
  encoding=gzip|deflate|br   compressed, a stream with a flush after each event

 how it is sent
  delay=S          wait before the head
  gap=S            from one event to the next
  header-drip[=S]  the head byte by byte, S apart (0.002)
  drip[=S]         the body byte by byte, S apart (0.002)
  split            sends end in the middle of events
  merge[=N]        N events in a send (3)
  close            "Connection: close", and closed after the answer
  idle-close=S     closed after the answer when no further request comes within S
  framing=cl-te | bad-te | cl-negative | cl-double | cl-list | cl-garbage | nul-header |
          no-length | http10 | 100 | 101 | 103 | bad-chunk | chunk-ext | trailers |
          short-body | long-body | long-header | many-headers | bad-status | lf | fold | garbage

 how it breaks (N counts events of a stream, the first one with the role too; else bytes)
  stall=N          nothing more after N, but the connection stays open
  read-stall=N     no more of the request's body is read after N bytes of it (header only);
                   reset after delay=S (4)
  read-gap=S       the request's body is read slowly, S after each 64 KiB (header only)
  stall-before     the request is read and never answered
  reset=N          TCP reset after N; reset=0 before the head
  cut=N            the connection is closed after N, without the final chunk
  close-on-receipt[=kept]  closed when the request has been read (kept: only where the
                   connection has served another one before)
  early-413        413 and closed, before the body is read
"""
