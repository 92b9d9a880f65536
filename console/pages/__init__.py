"""Pages: the console in a browser. Shows what the functions behind the HTTP API answer; computes no number of its own, keeps nothing."""
