"""An app that speaks the protocol by the standard library alone, one call after another."""

import json
import os
import socket

stream = socket.socket(fileno=int(os.environ["LLMASOS_FD"])).makefile("rw", encoding="ascii")
number = 0


def say(**message):
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def call(name, **args):
    global number
    say(kind="call", id=str(number), name=name, args=args)
    number += 1
    while True:
        answer = json.loads(stream.readline())
        if answer["kind"] == "done":
            return answer["result"]
        if answer["kind"] == "fail":
            raise RuntimeError(answer["code"], answer["message"])


say(kind="hello", protocol=1, token=os.environ["LLMASOS_TOKEN"])
start = json.loads(stream.readline())
context = call("ctx.open")
call("ctx.append", context=context, text=start["params"]["prompt"])
reply = call("llm.generate", context=context, max_tokens=6)
call("io.write", text=f"{reply['finish']} {reply['text']}\n")
try:
    call("ctx.info", context=99)
except RuntimeError as error:
    call("io.write", text=f"{error.args[0]}\n")
say(kind="exit", code=5)
