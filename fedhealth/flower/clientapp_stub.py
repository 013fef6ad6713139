"""Stands for `flwr-clientapp` on a site's PATH: hands its arguments to the warm process (standard library only)."""

import json
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.settimeout(30)
    connection.connect(sys.argv[1])
    connection.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
    sys.exit(0 if connection.recv(16) == b"forked\n" else 1)
