"""Training runs that never were, with the shapes of real ones: phases, spikes, clipping, samples."""

import json
import math
import random

N_LAYERS = 9  # eight and one of MTP
TEXT = (
    "The king looked at the sea and said that the ships would come before the winter. "
    "Nobody believed him, but they lit the fires on the hills all the same.\nOn the third day "
)


class Run:
    """steps: of the optimizer. pace: how fast the loss falls. rich: experts, indexer, MTP."""

    def __init__(self, steps=3000, pace=1.0, seed=1, rich=True, spike_at=None, lr=1e-3):
        self.steps, self.pace, self.rich, self.lr = steps, pace, rich, lr
        self.spike_at = spike_at
        self.random = random.Random(seed)
        self.tokens = 0
        self.time = 1.79e9
        self.lines = []

    def phase(self, step):
        part = step / self.steps
        if part < 0.55:
            return "dense", 256 if part < 0.3 else 512
        return ("indexer_warmup", 512) if part < 0.58 else ("sparse", 1024)

    def learning_rate(self, step):
        warm, decay = 0.03 * self.steps, 0.8 * self.steps
        if step < warm:
            return self.lr * step / warm
        if step < decay:
            return self.lr
        done = (step - decay) / (self.steps - decay)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def add(self, kind, step, **fields):
        self.lines.append(
            json.dumps({"kind": kind, "step": step, "tokens": self.tokens, "time": self.time, **fields})
        )

    def event(self, step, what, sentence):
        self.add("event", step, what=what, sentence=sentence)

    def loss(self, step):
        x = self.pace * step / self.steps
        return 2.9 + 6.1 * math.exp(-9 * x) + 0.9 * math.exp(-2 * x)

    def step(self, step, bump=0.0, anticipatory="off"):
        draw = self.random.gauss
        phase, length = self.phase(step)
        batch = min(16384, 4096 + 4096 * (step * 5 // self.steps))
        seconds = batch / (21000 + draw(0, 700)) * (1.25 if anticipatory == "on" else 1.0)
        self.time += seconds
        warmup = phase == "indexer_warmup"
        if not warmup:
            self.tokens += batch
        loss = self.loss(step) + draw(0, 0.07) + bump
        norm = 0.35 * math.exp(draw(0, 0.25)) + 3 * math.exp(-step / 60) + 4 * bump
        lr = self.learning_rate(step)
        fields = {
            "phase": phase,
            "stage": 0 if length == 256 else 1,
            "sequence_length": length,
            "batch_tokens": batch,
            "lr": lr,
            "loss": None if warmup else loss,
            "grad_norm": norm,
            "clipped_grad_norm": min(norm, 1.0),
            "clipped": norm > 1,
            "muon_update_rms": 0.18 * lr * (1 + draw(0, 0.004)),
            "adamw_update_rms": lr * (0.3 + 0.5 * math.exp(-step / 500)) * math.exp(draw(0, 0.05)),
            "step_seconds": seconds,
            "data_seconds": 0.004 * seconds,
            "forward_seconds": 0.29 * seconds,
            "backward_seconds": 0.58 * seconds,
            "optimizer_seconds": 0.12 * seconds,
            "newton_schulz_seconds": 0.1 * seconds,
            "tokens_per_second": batch / seconds,
            "peak_memory_bytes": int(1.1e9 + 30000 * batch),
            "anticipatory": anticipatory,
            "qat": "fp4" if step > 0.85 * self.steps else "off",
        }
        if self.rich:
            start = math.exp(-step / (0.08 * self.steps))
            fields["mtp_loss"] = None if warmup else loss + 0.45 + draw(0, 0.05)
            fields["balance_loss"] = 1 + 0.4 * start + abs(draw(0, 0.01))
            fields["expert_load"] = [None] + [
                1.08 + 0.02 * layer + 2.4 * start / (1 + layer / 3) + abs(draw(0, 0.05)) + 0.5 * bump
                for layer in range(1, N_LAYERS)
            ]
            fields["dead_experts"] = [0] + [int(5 * start + draw(0, 0.3) > 3) for _ in range(1, N_LAYERS)]
            fields["bias_spread"] = [None] + [
                min(0.4, 1e-3 * step) * (0.6 + 0.05 * layer) for layer in range(1, N_LAYERS)
            ]
            fields["gate_clamped"] = [1e-5 * abs(draw(1, 0.4)) for _ in range(N_LAYERS)]
            fields["up_clamped_high"] = [2e-5 * abs(draw(1, 0.4)) for _ in range(N_LAYERS)]
            fields["up_clamped_low"] = [1.5e-5 * abs(draw(1, 0.4)) for _ in range(N_LAYERS)]
            fields["sink_mass"] = [0.04 + 0.01 * layer + draw(0, 0.002) for layer in range(N_LAYERS)]
            fields["amax_gain"] = 1 + 0.5 * step / self.steps + draw(0, 0.01)
            fields["executed_flops"] = 1.1e8 * batch
            fields["mfu"] = 0.52 + draw(0, 0.01)
            if phase != "dense":
                since = step - 0.55 * self.steps
                fields["index_loss"] = 0.03 + 1.5 * math.exp(-since / (0.01 * self.steps))
                fields["index_recall_of_best"] = 0.98 - 0.5 * math.exp(-since / (0.008 * self.steps))
                fields["index_recall"] = 0.96 - 0.5 * math.exp(-since / (0.008 * self.steps))
            if fields["qat"] == "fp4":
                fields["fp4_scale_lift"] = int(abs(draw(4, 3)))
        self.add("step", step, **fields)

    def train(self):
        self.eval(0)
        before = None
        step = 1
        while step <= self.steps:
            now = self.phase(step)
            if now != before:
                self.event(step, "phase", f"{now[0]} attention, sequences of {now[1]} tokens")
                before = now
            if self.spike_at and self.spike_at <= step < self.spike_at + 5:
                self.step(step, bump=0.6 * (step - self.spike_at + 1))
                if step == self.spike_at + 4:
                    back = step - 60
                    self.event(back, "rollback",
                               f"step {step}: log loss 9.1 deviations above its median; back to step {back}, "
                               "experts chosen 4 steps ahead for 200 steps")
                    self.spiked, self.spike_at = step, None
                    step = back
            else:
                on = hasattr(self, "spiked") and step < self.spiked + 140
                self.step(step, anticipatory="on" if on else "off")
            if step % (self.steps // 30 or 1) == 0:
                self.eval(step)
            if step % (self.steps // 6 or 1) == 0:
                self.event(step, "checkpoint", f"checkpoints/step-{step:08d}, 41.3 MiB in 0.2 s")
                self.add("sample", step, prompt="Once upon a time", text=" " + TEXT * (1 + step % 2))
            step += 1
        self.event(self.steps, "stopped", "all tokens trained on")
        return self

    def eval(self, step):
        self.add("eval", step, split="validation", loss=self.loss(step) + 0.03, eval_tokens=65536)

    def write(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.jsonl").write_text("\n".join(self.lines) + "\n")
        (directory / "config.toml").write_text(
            f"""[data]
directory = "data/tales"
seed = 1

[lr]
peak = {self.lr}
end = {self.lr / 10}
warmup_steps = {int(0.03 * self.steps)}

[[stages]]
sequence_length = 256
fraction = 0.3
[[stages]]
sequence_length = 512
fraction = 0.7

[muon]
enabled = {"true" if self.rich else "false"}
schedule = [[3.4445, -4.775, 2.0315], [2.0, -1.5, 0.5]]
"""
        )
        (directory / "config.json").write_text(
            json.dumps({"hidden_size": 256, "num_hidden_layers": 8, "n_routed_experts": 16,
                        "compress_ratios": [0, 0, 4, 128]})
        )
        return directory
