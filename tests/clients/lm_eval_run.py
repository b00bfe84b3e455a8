"""lm-eval against the service, with prompts one by one and in lists of eight. Prints what it found, as JSON.

Arguments: the service's address. The working directory is the tasks'.
"""

import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager

server = {"model": "shakespeare", "base_url": f"{sys.argv[1]}/v1/completions", "tokenizer_backend": "remote"}
names = ["choice", "rolling", "until"]
tasks = TaskManager(include_path=".", include_defaults=False)
found = {}
for batch_size in (1, 8):
    results = lm_eval.simple_evaluate(
        "local-completions", server, names, batch_size=batch_size, task_manager=tasks, bootstrap_iters=0
    )
    assert results is not None
    found[batch_size] = results["samples"]
json.dump(found, sys.stdout, default=str)
