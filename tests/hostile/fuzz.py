"""Look for bytes that break a promise of one of the parsers: `python -m tests.hostile.fuzz [SECONDS]` (`make fuzz`).

Coverage-guided (atheris, which is libFuzzer for Python). What it finds on its way stays in `.fuzz`; bytes that break a
promise are written into the corpus, so that the next `make test` fails over them until they break it no more.
`--merge` adds to the corpus what reaches code that nothing in it reaches yet.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
MAX_BYTES = 4096
"""Longer inputs reach no more code; bounds of megabytes have tests of their own."""


def fuzz(target: str, options: list[str]) -> None:
    """Run one target in this process, which libFuzzer ends."""
    import atheris  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - only here is it wanted

    # What is imported in here is instrumented: our own code, whose branches guide the search.
    with atheris.instrument_imports(include=["sandbox_svc", "supervisor"]):
        from tests.hostile.fuzz_targets import TARGETS  # noqa: PLC0415
    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def run(target: str, seconds: int, *, merge: bool) -> int:
    """Run one target in a process of its own; return its exit code."""
    kept, found = HERE / "corpus" / target, ROOT / ".fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    folders = [kept, found] if merge else [found, kept]
    options = [*map(str, folders), f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    options += ["-merge=1"] if merge else [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/"]
    return subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", "--target", target, *options], cwd=ROOT, check=False
    ).returncode


def main() -> None:
    if sys.argv[1:2] == ["--target"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=int, default=240, help="for all targets together")
    parser.add_argument("--merge", action="store_true", help="see above")
    arguments = parser.parse_args()
    targets = sorted(path.name for path in (HERE / "corpus").iterdir())
    failed = [target for target in targets if run(target, arguments.seconds // len(targets), merge=arguments.merge)]
    if failed:
        sys.exit(f"broken promises of {', '.join(failed)}; the bytes are in {HERE / 'corpus'}")


if __name__ == "__main__":
    main()
