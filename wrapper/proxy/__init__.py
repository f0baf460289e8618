"""The path of a request, in file order."""
