"""Run a training script as it is, a few optimiser steps at a time, and print what they cost.

    python benchmarks/step_clock.py 10 training/train_controlnet.py --train_data_dir data/pairs ...

After the first step, and then after every ten, prints a line of JSON and waits for a line on the standard input: "cpu", the
process's seconds since it last waited, user and system of all threads, and "peak", its largest resident memory in MiB.
At the end of the input the process ends at once, so nothing is saved or drawn. The script needs no change: torch calls
the clock after each step of any optimiser. What the script prints goes to the standard error.
"""

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path


class Clock:
    def __init__(self, window: int):
        self.window, self.steps, self.resumed = window, 0, 0.0
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, *_) -> None:
        self.steps += 1
        if self.steps % self.window != 1 % self.window:
            return
        cpu, peak = time.process_time() - self.resumed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"cpu": cpu, "peak": peak}), file=self.answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.resumed = time.process_time()


def main(window: str, script: str, *arguments: str) -> None:
    clock = Clock(int(window))
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(clock)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
