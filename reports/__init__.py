"""The clerk: verdicts in, text out, one format or renderable a file."""
