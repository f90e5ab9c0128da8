"""Python code that starts a script in which every connection and every file opened for writing is noted."""

HOOK = """
import sys
seen = []

def hook(event, args):
    if event.startswith(("socket.connect", "socket.get", "socket.send")):
        seen.append((event, args))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append((event, args))

sys.addaudithook(hook)
"""
