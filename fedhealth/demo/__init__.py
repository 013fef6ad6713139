"""`fedhealth demo`: the production commands, on loopback, with hospitals on this machine."""
