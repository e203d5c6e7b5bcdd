"""One fuzzer, as a process: `python tests/support/fuzz.py TARGET --inputs N --seed S [--guided]`.

Plain, it alters valid inputs with an understanding of what they are, the same for the same seed.
Guided, atheris chooses what to alter further, by the branches of Python that inputs reach; half of
its inputs are made as above. What came of them is printed at the end, as JSON. Where a promise
is broken the input is printed, in hexadecimal, and `--input HEX` tries it again.

`--native FILE` takes a native module built otherwise, such as with the compiler's sanitizers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.peak import peak_bytes

if TYPE_CHECKING:
    from support.fuzz_targets import Target

INPUT_S_MAX = 10.0
"""An input that takes longer hangs."""
GROWTH_BYTES_MAX = 256 << 20
"""Bound on the growth of an unguided fuzzer after its first inputs; atheris itself grows, by some
KiB for each input that it guides."""
WARM_INPUTS = 2000


def main() -> NoReturn:
    """Fuzzes, and ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--native", type=Path)
    parser.add_argument("--input", type=bytes.fromhex)
    result = parser.parse_args()
    if result.native:
        use_native(result.native)
    if result.guided:
        import atheris

        instrumenting = atheris.instrument_imports(include=["thinrow"])
    else:
        instrumenting = nullcontext()
    with instrumenting:
        from support.fuzz_targets import TARGETS
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    watched = Watched(
        TARGETS[result.target](Path(folder.name)), result.inputs, folder, guided=result.guided
    )
    if result.input is not None:
        watched.target(result.input)
        watched.end(0)
    if result.guided:
        guided(watched, result.seed)
    rng = random.Random(result.seed)
    while True:
        watched(watched.target.altered(rng))


def guided(watched: Watched, seed: int) -> NoReturn:
    """Lets atheris choose."""
    import atheris

    def alter(data: bytes, bytes_max: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return watched.target.altered(rng)[:bytes_max]
        return bytes(atheris.Mutate(data, bytes_max))

    options = [f"-seed={seed}", "-max_len=4096", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options], watched, custom_mutator=alter)
    atheris.Fuzz()
    raise AssertionError("atheris ended by itself")


class Watched:
    """A target that counts, and lets no input take too long or too much memory."""

    def __init__(
        self,
        target: Target,
        inputs: int,
        folder: tempfile.TemporaryDirectory[str],
        *,
        guided: bool,
    ) -> None:
        self.target = target
        self._guided = guided
        self._inputs, self._folder = inputs, folder
        self._done = 0
        self._began_s = time.monotonic()
        self._warm_bytes = 0
        signal.signal(signal.SIGALRM, self._hangs)
        signal.signal(signal.SIGTERM, lambda *_: self.end(0))  # shows what was seen so far

    def __call__(self, data: bytes) -> None:
        """One input."""
        signal.setitimer(signal.ITIMER_REAL, INPUT_S_MAX)
        try:
            self.target(data)
        except BaseException:
            traceback.print_exc()
            print(f"broken by --input {data.hex()}", file=sys.stderr, flush=True)
            self.end(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._done += 1
        if self._done == WARM_INPUTS:
            self._warm_bytes = peak_bytes()
        if self._done == self._inputs:
            self.end(0)

    def _hangs(self, *_: object) -> NoReturn:
        raise TimeoutError(f"An input took longer than {INPUT_S_MAX:g} s.")

    def end(self, status: int) -> NoReturn:
        """Prints what was seen, and ends the process: libFuzzer would not come back."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not status:
            self.target.close()
        grown_bytes = peak_bytes() - self._warm_bytes if self._warm_bytes else 0
        if grown_bytes > GROWTH_BYTES_MAX and not self._guided:
            print(f"It grew by {grown_bytes:,} bytes.", file=sys.stderr)
            status = status or 1
        seconds = round(time.monotonic() - self._began_s, 1)
        result = {"inputs": self._done, "seconds": seconds, "grown_bytes": grown_bytes}
        print(json.dumps({**result, "seen": dict(sorted(self.target.seen.items()))}), flush=True)
        self._folder.cleanup()
        os._exit(status)


def use_native(path: Path) -> None:
    """Takes another build of the native module, before anything imports it."""
    import thinrow

    spec = importlib.util.spec_from_file_location("thinrow._native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["thinrow._native"] = module
    spec.loader.exec_module(module)
    thinrow._native = module


if __name__ == "__main__":
    main()
