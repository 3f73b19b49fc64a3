"""Parks, reads one program, and becomes the bash that runs it: what is measured and killed is then bash itself."""

import json
import os
import sys

RESULT_FD = 3
PROGRAM_FD = 4
VALUE_FD = 198  # as call_main.sh has it
BASH = "/bin/bash"
CALL_MAIN = os.path.dirname(os.path.abspath(__file__)) + "/call_main.sh"


def read_program() -> bytes:
    os.write(RESULT_FD, b"P\0\0\0\0")
    chunks = []
    while chunk := os.read(PROGRAM_FD, 1 << 16):
        chunks.append(chunk)
    os.close(PROGRAM_FD)
    return b"".join(chunks)


def fail(sentence: str) -> None:
    os.write(2, f"{sentence}\n".encode())
    error = json.dumps({"type": "FilesError", "message": sentence, "line": None}).encode()
    os.write(RESULT_FD, b"E" + len(error).to_bytes(4, "big") + error + b"D\0\0\0\x011")
    sys.exit(1)


def main() -> None:
    program = read_program()
    if not program:
        return
    start = 4 + int.from_bytes(program[:4], "big")
    meta = json.loads(program[4:start])
    end = start + meta["source_bytes"]
    # Relative, so that bash says `main.sh: line 3`.
    file = meta["source_name"]
    if not meta["is_file"]:
        try:
            with open(file, "xb") as source:
                source.write(program[start:end])
        except FileExistsError:
            fail(f"{file} is the name of the program itself here: call the file of this name otherwise")
    environ = os.environ | meta["env"]
    if not meta["call_main"]:
        os.close(RESULT_FD)
        os.execve(BASH, [BASH, "--", file, *meta["args"]], environ)
    # main reads its arguments from standard input. A pipe holds 64 KiB and nobody would write the rest: a file does.
    arguments = os.memfd_create("arguments")
    with open(arguments, "wb", closefd=False) as stream:
        stream.write(program[end:])
    os.lseek(arguments, 0, os.SEEK_SET)
    os.dup2(arguments, 0)
    os.dup2(os.memfd_create("result"), VALUE_FD)
    os.execve(BASH, [BASH, CALL_MAIN, file], environ)


main()
