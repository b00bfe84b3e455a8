"""Training: optimisers, the step, and runs that resume exactly.

Everything random depends on (seed, step, part), so the resumable state is the weights, the optimisers' moments and
the number of the step. Several processes (torchrun) share the parts of a step and add their gradients; the sum is
the same as one process's.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from model import curve
from model.batches import Material
from model.machine import has_bf16
from model.muon import Muon
from model.network import Network
from model.recipe import Recipe
from model.recurrent import State

STATE = "state.safetensors"
Report = Callable[[curve.Row], None]


def optimizers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW without weight decay for tables, norms, decays and embeddings."""
    in_blocks = dict(network.blocks.named_parameters())
    matrices = {name: p for name, p in in_blocks.items() if p.ndim == 2 and ".bias." not in name}
    chosen = {id(p) for p in matrices.values()}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0, "lr": recipe.adamw_rate}]
    if recipe.optimizer == "adamw":
        groups.append({"params": list(matrices.values()), "weight_decay": recipe.weight_decay, "lr": recipe.adamw_rate})
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.95))]
    if recipe.optimizer == "muon":
        rate, decay = recipe.muon_rate, recipe.weight_decay
        dtype = torch.bfloat16 if wants_bf16(recipe, next(network.parameters()).device) else torch.float32
        given = list(matrices.values())
        made.append(Muon(given, dtype=dtype, lr=rate, weight_decay=decay, momentum=0.95))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def _averager(decay: float) -> Callable[[Any, Any, Any], None]:
    """The step of a moving average of weights; the first steps, of which nothing should stay, weigh less."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        so_far = (1 + int(count)) / (10 + int(count))
        torch._foreach_lerp_(averaged, current, 1 - min(decay, so_far))

    return update


def wants_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether a run takes its products in bf16: where its recipe says so, or leaves it to the hardware."""
    return recipe.precision == "bf16" or (recipe.precision == "auto" and has_bf16(device.type))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Trainer:
    """One run in a folder: ``step`` until ``done``; ``save`` and ``resume`` are exact."""

    def __init__(self, network: Network, material: Material, recipe: Recipe, folder: Path) -> None:
        self.network, self.recipe, self.folder = network, recipe, folder
        self.source, self.validation, self.corpus_sha256 = material
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if recipe.accumulate % self.world or recipe.batch % recipe.accumulate:
            given = f"batch {recipe.batch}, accumulate {recipe.accumulate}, {self.world} processes"
            raise ValueError(f"accumulate must divide the batch and be a multiple of the processes: {given}")
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        self.network.to(self.device)
        self.averaged = AveragedModel(network, multi_avg_fn=_averager(recipe.average)) if recipe.average else None
        self.optimizers = optimizers(network, recipe)
        self.steps_done, self.seconds, self.rows = 0, 0.0, list[curve.Row]()
        self._recent: list[float] = []
        self._scanned = 0
        self._carried: dict[int, list[State]] = {}  # by part: the states after its last window

    @property
    def result(self) -> Network:
        """What is evaluated and kept: the moving average where the recipe asks for one."""
        if self.averaged is None:
            return self.network
        network = self.averaged.module
        assert isinstance(network, Network)
        return network

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.steps_done >= self.recipe.steps

    def autocast(self) -> torch.autocast:
        """bf16 products where the recipe wants them, or where the hardware multiplies bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wants_bf16(self.recipe, self.device))

    def step(self) -> float:
        """One step of the global batch; returns its mean loss in bits per character or sub-pixel.

        ValueError where the gradients are no finite numbers: what was saved before stands.
        """
        began = time.perf_counter()
        self.network.train()
        inputs, targets = self.source.batch(self.steps_done, self.recipe.batch)
        parts = self.recipe.accumulate
        totals = torch.zeros(2, device=self.device)  # the loss, sequences scanned
        for part in range(self.rank, parts, self.world):
            torch.manual_seed(hash((self.recipe.seed, self.steps_done, part)) & (2**63 - 1))
            given = inputs.chunk(parts)[part].to(self.device)
            with self.autocast():
                logits, states = self.network(given, self._states(part, len(given)))
            self._carried[part] = [State(*(tensor.detach() for tensor in state)) for state in states]
            target = targets.chunk(parts)[part].to(self.device)
            loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten()) / parts
            loss.backward()
            totals[0] += loss.detach()
            totals[1] += self.network.num_scanned
        self._share(totals)
        if not nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.max_grad_norm).isfinite():
            rates = f"muon_rate {self.recipe.muon_rate}, adamw_rate {self.recipe.adamw_rate}"
            raise ValueError(
                f"step {self.steps_done + 1}: the gradients are no finite numbers; is a rate too high ({rates})?"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self.recipe.rate(self.steps_done)
            optimizer.step()
            optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.steps_done += 1
        self.seconds += time.perf_counter() - began
        total, scanned = totals.tolist()
        self._scanned += int(scanned)
        self._recent = [*self._recent, total / math.log(2)][-self.recipe.eval_every :]
        return self._recent[-1]

    def _states(self, part: int, size: int) -> list[State] | None:
        """What a part's windows begin with: nothing, an empty state, or what the windows before them left."""
        if self.recipe.carry == 1:
            return None
        return self.network.init_state(size) if self.steps_done % self.recipe.carry == 0 else self._carried[part]

    def _share(self, totals: Tensor) -> None:
        """Add the gradients and what else is summed of all processes."""
        if self.world == 1:
            return
        tensors = [p.grad for p in self.network.parameters() if p.grad is not None] + [totals]
        flat = torch.cat([t.flatten() for t in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Bits per character or sub-pixel of the validation examples."""
        network = self.result.eval()
        inputs, targets = self.validation
        total = 0.0
        for x, y in zip(inputs.split(16), targets.split(16), strict=True):
            with self.autocast():
                logits, _ = network(x.to(self.device))
            y = y.to(self.device).flatten()
            total += float(F.cross_entropy(logits.float().flatten(0, 1), y, reduction="sum"))
        return total / int((targets >= 0).sum()) / math.log(2)

    def record(self) -> curve.Row:
        """Evaluate and add a row to the curve."""
        raster = self.network.config.raster
        chars = self.steps_done * self.recipe.batch * (self.recipe.length if raster is None else raster.size)
        recent = self._recent or [math.nan]  # as many as lie between two evaluations, at an early end, too
        row = {
            "step": float(self.steps_done),
            "chars": float(chars),
            "seconds": self.seconds,
            "train_bpc": sum(recent) / len(recent),
            "validation_bpc": self.evaluate(),
            "chars_per_second": chars / max(self.seconds, 1e-9),
            "num_scanned": float(self._scanned),
        }
        self._scanned = 0
        self.rows.append(row)
        return row

    def run(self, report: Report, after_step: Callable[[Trainer, float], None] | None = None) -> None:
        """To the end, from wherever the folder's state stands; saves and evaluates on the way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rows and self.rows[-1]["step"] == self.steps_done:
            report(self.rows[-1])  # the run may have ended before anybody heard of it
        while not self.done:
            loss = self.step()
            if after_step:
                after_step(self, loss)
            row = self.record() if self.steps_done % self.recipe.eval_every == 0 or self.done else None
            if self.rank == 0 and row is not None:
                curve.write_csv(self.rows, self.folder / "curve.csv")
            if self.rank == 0 and (self.steps_done % self.recipe.save_every == 0 or self.done):
                self.save()
            if row is not None:
                report(row)  # last: what a report may fail at is no reason to lose the step

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.network.state_dict().items():
            if not (self.network.config.tied_head and name == "head.weight"):
                yield f"weights/{name}", tensor
        if self.averaged is not None:
            for name, tensor in self.averaged.state_dict().items():
                if not (self.network.config.tied_head and name == "module.head.weight"):
                    yield f"averaged/{name}", tensor
        for number, optimizer in enumerate(self.optimizers):
            for key, moments in optimizer.state_dict()["state"].items():
                for name, tensor in moments.items():
                    yield f"optimizer/{number}/{key}/{name}", torch.as_tensor(tensor)

    def save(self) -> None:
        """Write the resumable state as one file, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "recipe": self.recipe.model_dump(mode="json"),
            "corpus_sha256": self.corpus_sha256,
            "steps_done": self.steps_done,
            "seconds": self.seconds,
            "rows": self.rows,
            "recent": self._recent,
            "scanned": self._scanned,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._named()}
        temporary = self.folder / f"{STATE}.partial"
        temporary.write_bytes(safetensors.torch.save(tensors, {"facts": json.dumps(facts)}))
        temporary.replace(self.folder / STATE)

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one. ValueError where another recipe wrote it."""
        path = self.folder / STATE
        if not path.exists():
            return False
        try:
            return self._resume(path)
        except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it to start again") from error

    def _resume(self, path: Path) -> bool:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            if Recipe.model_validate(facts["recipe"]) != self.recipe:
                raise ValueError(
                    f"{self.folder}: a run with another recipe stands here; remove it or choose another name"
                )
            # a state without the hash is older than this check
            if facts.get("corpus_sha256", self.corpus_sha256) != self.corpus_sha256:
                raise ValueError(
                    f"{self.folder}: the corpus is another than the one this run began with; remove the run"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        strict = not self.network.config.tied_head
        try:
            self.network.load_state_dict(_below("weights/", tensors), strict=strict)
        except RuntimeError as error:  # a preset has changed since
            raise ValueError(
                f"{self.folder}: the run that stands here has another network; remove it or choose another name"
            ) from error
        if self.averaged is not None:
            self.averaged.load_state_dict(_below("averaged/", tensors), strict=strict)
        for number, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer/{number}/"):
                    _, _, key, kind = name.split("/")
                    moments.setdefault(int(key), {})[kind] = tensor
            optimizer.load_state_dict({**state, "state": moments})
        self.steps_done, self.seconds, self.rows = facts["steps_done"], facts["seconds"], facts["rows"]
        self._recent, self._scanned = facts["recent"], facts["scanned"]
        return True
