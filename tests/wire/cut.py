"""Stands between torchlane and an S3 server, and lets the server die in the middle of a file.

    cut.py SERVER_PORT CUT_AFTER LOG

Prints its own port. After CUT_AFTER bytes of answers to requests for model.pt, every connection is closed and 'cut' is
written to LOG, once: whoever waits for that line kills the server. Each request for model.pt is a line 'get PATH RANGE'
there. Headers count too: they are some hundred bytes.
"""

import asyncio
import re
import sys

server_port, cut_after, log_path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
passed = 0
is_cut = False
open_writers = set()


def log(line):
    with open(log_path, "a") as out:
        out.write(line + "\n")


async def requests(reader, writer, state):
    while data := await reader.read(65536):
        if data.startswith(b"GET "):
            path = data.split(b" ", 2)[1].decode()
            state["file"] = path.endswith("/model.pt")
            if state["file"]:
                found = re.search(rb"(?im)^range: *(.*?)\r$", data)
                log(f"get {path} " + (found.group(1).decode() if found else "all"))
        writer.write(data)
        await writer.drain()
    writer.close()


async def answers(reader, writer, state):
    global passed, is_cut
    # Small pieces, so that the cut is where it should be.
    while data := await reader.read(4096):
        if state["file"]:
            passed += len(data)
        writer.write(data)
        await writer.drain()
        if passed >= cut_after and not is_cut:
            is_cut = True
            log("cut")
            for each in list(open_writers):
                each.close()
    writer.close()


async def serve(reader, writer):
    state = {"file": False}
    try:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server_port)
    except OSError:
        writer.close()
        return
    open_writers.update({writer, up_writer})
    await asyncio.gather(requests(reader, up_writer, state), answers(up_reader, writer, state), return_exceptions=True)
    open_writers.difference_update({writer, up_writer})


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
