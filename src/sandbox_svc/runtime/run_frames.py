"""The frames of a run as values: a program out, output, artifacts and an outcome in, each checked against its bounds.

A supervisor shares its container with hostile code, so what it says is believed only as far as it can be true.
"""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

import msgspec

from sandbox_svc.errors import ProtocolError
from sandbox_svc.runtime import MIB, Artifact, Limit, Outcome, Program, RunLimits, protocol
from sandbox_svc.runtime.protocol import Frame, FrameType

MAX_ARTIFACTS: Final = 10
MAX_ARTIFACT_BYTES: Final = 20 * MIB
"""What a supervisor sends at most, all files of a run together; more is a breach of the protocol."""
OUTPUT_SLACK_BYTES: Final = 64 * 1024
"""Output is cut when the supervisor reads it, so up to one pipe buffer may come on top."""

HELLO: Final = msgspec.json.Decoder(protocol.Hello)
READY: Final = msgspec.json.Decoder(protocol.Ready)
FAULT: Final = msgspec.json.Decoder(protocol.Fault)
_OUTPUT: Final = msgspec.json.Decoder(protocol.OutputHead)
_ARTIFACT: Final = msgspec.json.Decoder(protocol.ArtifactHead)
_RESULT: Final = msgspec.json.Decoder(protocol.ResultHead)
_ENCODER: Final = msgspec.json.Encoder()

_LIMITS: Final = frozenset((None, *get_args(Limit)))


def encode_configure(configure: protocol.Configure) -> bytes:
    """Return the head of CONFIGURE."""
    return _ENCODER.encode(configure)


def encode_run(run_id: int, program: Program, *, stream: bool) -> bytes:
    """Return the whole RUN frame. Raises `ProtocolError` when the program exceeds a frame's bounds."""
    limits = program.limits
    head = protocol.RunHead(
        template=program.template,
        call_main=program.call_main,
        source_bytes=len(program.source),
        arguments_bytes=len(program.arguments),
        stdin_bytes=len(program.stdin),
        files=tuple((file.path, len(file.content)) for file in program.files),
        source_name=program.source_name,
        args=program.args,
        env=dict(program.env),
        artifact_globs=program.artifact_globs,
        keep_artifacts=program.keep_artifacts,
        stream=stream,
        wall_ms=limits.wall_ms,
        cpu_ms=limits.cpu_ms,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.output_bytes,
        result_bytes=limits.result_bytes,
    )
    parts = (program.source, program.arguments, program.stdin, *(file.content for file in program.files))
    return protocol.encode_frame(FrameType.RUN, run_id, _ENCODER.encode(head), parts)


class Received:
    """What came back of one run so far. Methods raise `ProtocolError` or `msgspec.MsgspecError`."""

    def __init__(self, limits: RunLimits) -> None:
        self._limits = limits
        self._artifacts: list[Artifact] = []
        self._artifact_bytes = 0
        self._output_bytes = 0
        self._output: dict[Literal["stdout", "stderr"], list[bytes]] = {"stdout": [], "stderr": []}

    def output(self, frame: Frame) -> Literal["stdout", "stderr"]:
        """Keep an OUTPUT frame, in case that no RESULT follows, and return the stream it belongs to."""
        stream = _OUTPUT.decode(frame.head).stream
        self._output_bytes += len(frame.body)
        if stream not in (1, 2) or self._output_bytes > self._limits.output_bytes + OUTPUT_SLACK_BYTES:
            raise ProtocolError("OUTPUT out of bounds")
        name: Literal["stdout", "stderr"] = "stdout" if stream == 1 else "stderr"
        self._output[name].append(frame.body)
        return name

    def output_so_far(self, name: Literal["stdout", "stderr"]) -> bytes:
        """What was streamed, for an outcome that is known without RESULT."""
        return b"".join(self._output[name])

    def artifact(self, frame: Frame) -> None:
        """Keep an ARTIFACT frame for the outcome."""
        self._artifact_bytes += len(frame.body)
        if len(self._artifacts) == MAX_ARTIFACTS or self._artifact_bytes > MAX_ARTIFACT_BYTES:
            raise ProtocolError("ARTIFACT out of bounds")
        self._artifacts.append(Artifact(_ARTIFACT.decode(frame.head).name, frame.body))

    def result(self, frame: Frame) -> Outcome:
        """Turn the RESULT frame into the outcome."""
        head = _RESULT.decode(frame.head)
        body, limits = frame.body, self._limits
        result_bytes = head.result_bytes or 0
        lengths = (result_bytes, head.stdout_bytes, head.stderr_bytes)
        if min(lengths) < 0 or sum(lengths) != len(body):
            raise ProtocolError("RESULT with lengths that do not add up")
        if result_bytes > limits.result_bytes or len(body) - result_bytes > limits.output_bytes + OUTPUT_SLACK_BYTES:
            raise ProtocolError("RESULT out of bounds")
        if head.limit not in _LIMITS or not 0 <= (head.exit_code or 0) <= 255 or not 0 <= (head.signal or 0) <= 64:
            raise ProtocolError("RESULT that no kernel would report")
        stdout_end = result_bytes + head.stdout_bytes
        return Outcome(
            exit_code=head.exit_code,
            signal=head.signal,
            limit=cast("Limit | None", head.limit),
            error=head.error,
            result=None if head.result_bytes is None else body[:result_bytes],
            stdout=body[result_bytes:stdout_end],
            stderr=body[stdout_end:],
            stdout_truncated=head.stdout_truncated,
            stderr_truncated=head.stderr_truncated,
            wall_us=max(head.wall_us, 0),
            cpu_us=max(head.cpu_us, 0),
            memory_kb=max(head.memory_kb, 0),
            has_oom_kills=head.has_oom_kills,
            artifacts=tuple(self._artifacts),
            artifacts_skipped=max(head.artifacts_skipped, 0),
            cancelled=head.cancelled,
        )
