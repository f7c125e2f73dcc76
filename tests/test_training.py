# SPDX-License-Identifier: Apache-2.0
import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llicm.codec.mean_scale import make_codec
from llicm.data.stream import PairStream
from llicm.errors import UserError
from llicm.framework import LLICM, load_part
from llicm.objectives import DISTANCES, distance
from llicm.restore.direct import make_restorer
from llicm.training.loop import Objective, Trainer, Transcoder, learning_rate, restorer_context, train_arm
from llicm.vlm.clip import degradation_text
from llicm.vlm.context import Context
from llicm.vlm.conditioner import Conditioner, Oracle

TASKS = ["noisy", "hazy"]
CODEC = {"name": "mean-scale", "N": 8, "M": 12, "lambdas": [0.002, 0.007, 0.02, 0.07]}
RESTORER = {"name": "direct", "width": 8, "blocks": [1, 1, 1]}
IRSDE = {
    "name": "irsde", "nf": 4, "ch_mult": [1, 2], "half": True, "heads": 1, "shrinkage": True, "scaling": "balanced",
    "predicts": "x0", "steps": 2, "mode": "posterior", "memory": None,
}  # fmt: skip
TRAINING = {
    "batch": 4, "crop": 64, "trunk": 4, "branch": 4, "lr": 1e-3, "warmup": 2, "clip": 1.0, "precision": "fp32",
    "log_every": 2, "checkpoint_every": 2, "told": 0.5,
}  # fmt: skip
DATA = {"dead_leaves_share": 0.5, "pool": 2, "refresh": 10, "severity": [0.0, 1.0], "mixed": 0.25}
RDO = {"alpha": 1.0, "beta": 1.0, "gamma": 0.0, "distortion": {"mse": 1.0}, "perception": {}}
RESTORE = {"alpha": 0.0, "beta": 0.0, "gamma": 0.01, "distortion": {}, "perception": {"log_mse": 1.0}}
RPO = {"alpha": 0.1, "beta": 1.0, "gamma": 1.0, "distortion": {"mse": 1.0}, "perception": {"log_mse": 1.0}}


@pytest.fixture(scope="module")
def photos():
    coarse = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return list(torch.nn.functional.interpolate(coarse, size=(140, 150), mode="bicubic").clamp(0, 1))


def arm(photos, tmp_path, name, spec, checkpoint=None, out=None, vlm=None, restorer=RESTORER, init=None, **changes):
    return train_arm(
        name, spec, photos=photos, paired=None, tasks=TASKS, data=DATA, codec=CODEC, restorer=restorer,
        training=TRAINING | changes, seed=0, models=tmp_path, vlm=vlm or tmp_path / "vlm",
        out=out or tmp_path / "separate" / name, checkpoint=checkpoint, init=init,
    )  # fmt: skip


def test_schedule():
    rate = [learning_rate(s, peak=1.0, warmup=10, steps=210) for s in range(211)]
    assert rate[0] == 0.1 and rate[9] == rate[10] == 1.0
    assert rate[110] == pytest.approx(0.5) and rate[210] == pytest.approx(0)
    assert rate[10:] == sorted(rate[10:], reverse=True)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_distances_order_and_differentiate(name):
    torch.manual_seed(0)
    ideal = torch.rand(2, 3, 128, 128)
    noise = torch.randn_like(ideal)
    near, far = (DISTANCES[name]((ideal + s * noise).clamp(0, 1), ideal) for s in (0.02, 0.1))
    assert near.shape == (2,) and (near < far).all()
    guess = (ideal + 0.05 * noise).requires_grad_()
    distance({name: 2.0}, guess, ideal).sum().backward()
    assert torch.isfinite(guess.grad).all() and guess.grad.abs().sum() > 0


def test_distances_meet_at_28_db():
    ideal = torch.full((1, 3, 64, 64), 0.5)
    for name in ("mse", "log_mse"):
        error = torch.tensor(10 / 255).requires_grad_()  # 255^2 MSE = 100
        (slope,) = torch.autograd.grad(DISTANCES[name](ideal + error, ideal).sum(), error)
        assert float(slope) == pytest.approx(2 * 10 * 255, rel=0.01)


def test_objective_is_the_stated_sum(photos):
    torch.manual_seed(0)
    system = LLICM(make_codec(**CODEC), make_restorer(**RESTORER))
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    out = system(x, torch.tensor([0.0, 3.0]))
    lmbda = torch.tensor([0.002, 0.07])
    loss, bpp = Objective(**RPO)(out, x, ideal, lmbda)
    mean = (0.002 * 0.07) ** 0.5
    of_codec = (mean / lmbda).sqrt() * (0.1 * lmbda * DISTANCES["mse"](out.decoded, x) + bpp)
    by_hand = of_codec + mean * DISTANCES["log_mse"](out.enhanced, ideal)
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    without_rate, _ = Objective(**RESTORE)(out, x, ideal, lmbda)
    assert without_rate.item() == pytest.approx(
        0.01 * DISTANCES["log_mse"](out.enhanced, ideal).mean().item(), rel=1e-5
    )


def test_unknown_distance_is_named():
    with pytest.raises(UserError, match="nonesuch"):
        distance({"nonesuch": 1.0}, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))


def test_perception_term_reaches_the_encoder(photos):
    torch.manual_seed(0)
    system = LLICM(make_codec(**CODEC), make_restorer(**RESTORER))
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    pure = Objective(alpha=0.0, beta=0.0, gamma=1.0, distortion={}, perception={"log_mse": 1.0})
    pure(system(x, torch.tensor([1.0, 2.0])), x, ideal, None)[0].backward()
    assert system.codec.decide[-1].weight.grad.abs().sum() > 0


def test_perception_counts_for_the_codec_by_the_level():
    """Where it is not limited, P pulls the codec as in lambda · gamma · P, divided by the square root like the rest."""
    torch.manual_seed(0)
    restorer, lmbda = make_restorer(**RESTORER), torch.tensor([0.002, 0.07])
    codec = make_codec(**CODEC)
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    gradients = []
    codec.register_forward_hook(lambda *call: call[-1]["x_hat"].register_hook(gradients.append) and None)
    output = LLICM(codec, restorer)(x, torch.tensor([0.0, 3.0]))
    Objective(0.0, 1.0, 1.0, {}, {"mse": 1.0})(output, x, ideal, lmbda)[0].backward()
    decoded = output.decoded.detach().requires_grad_()
    distances = DISTANCES["mse"](restorer(decoded), ideal)
    (by_hand,) = torch.autograd.grad((((0.002 * 0.07) ** 0.5 * lmbda).sqrt() * distances).mean(), decoded)
    assert torch.allclose(gradients[0], by_hand, rtol=1e-3, atol=1e-8)


def pull_on_decoded(alpha, gamma):
    """Norm of the gradient on each decoded image, for the same images and the same weights."""
    torch.manual_seed(0)
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    system = LLICM(make_codec(**CODEC), make_restorer(**RESTORER))
    seen = []
    system.codec.register_forward_hook(
        lambda module, inputs, output: output["x_hat"].register_hook(seen.append) and None
    )
    Objective(alpha, 0.0, gamma, {"mse": 1.0}, {"mse": 1.0})(system(x, torch.tensor([1.0, 2.0])), x, ideal, None)[
        0
    ].backward()
    return seen[0].flatten(1).norm(dim=1)


def test_perception_pulls_no_sample_harder_than_distortion_does():
    distortion, both, perception = (pull_on_decoded(*weights) for weights in ((1.0, 0.0), (1.0, 1e6), (0.0, 1e6)))
    assert (both < 2.001 * distortion).all() and not torch.allclose(both, distortion, rtol=0.01)
    assert (perception > 100 * distortion).all()  # with nothing to measure it by, P is left alone


def test_frozen_parts_do_not_move(photos):
    torch.manual_seed(0)
    system = LLICM(make_codec(**CODEC), make_restorer(**RESTORER))
    before = copy.deepcopy(system.state_dict())
    stream = PairStream(photos, TASKS, 64, 4, 0, 0.0, (0.0, 1.0), 1, 10)
    Trainer(
        system, ["restorer"], Objective(**RESTORE), stream, TASKS,
        steps=3, warmup=1, lr=1e-3, clip=1.0, precision="fp32", seed=0, log_every=1,
    ).run()  # fmt: skip
    moved = {n for n, v in system.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(n.startswith("restorer.") for n in moved)


class Memory:
    """A checkpoint that can be interrupted after a number of saves."""

    def __init__(self, interrupt_after=None):
        self.state, self.left, self.finished = None, interrupt_after, False

    def load(self):
        return self.state

    def save(self, state):
        self.state = copy.deepcopy(state)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def done(self):
        self.finished = True


@pytest.mark.parametrize("saves", [1, 3])
def test_an_interrupted_run_ends_in_the_same_bytes(photos, tmp_path, saves):
    spec = {"trains": ["codec"], "start": None, "objective": RDO}
    whole = arm(photos, tmp_path, "codec", spec, out=tmp_path / "whole")
    memory = Memory(interrupt_after=saves)
    with pytest.raises(KeyboardInterrupt):
        arm(photos, tmp_path, "codec", spec, memory, out=tmp_path / "broken")
    memory.left = None
    resumed = arm(photos, tmp_path, "codec", spec, memory, out=tmp_path / "resumed")
    assert memory.finished and resumed.rows == whole.rows
    for name in ("codec.safetensors", "trunk.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("restorer", [RESTORER, IRSDE], ids=["direct", "irsde"])
def test_arms_build_on_each_other(photos, tmp_path, restorer):
    arm(photos, tmp_path, "codec", {"trains": ["codec"], "start": None, "objective": RDO})
    of_its_own = {"trains": ["restorer"], "start": None, "objective": RESTORE}
    arm(photos, tmp_path, "restorer", of_its_own, restorer=restorer)
    start = {"codec": "separate/codec/codec.safetensors", "restorer": "separate/restorer/trunk.safetensors"}
    adapted = {"trains": ["restorer"], "start": start, "objective": RESTORE}
    arm(photos, tmp_path, "adapted", adapted, out=tmp_path / "adapted")
    frozen = (tmp_path / "adapted" / "codec.safetensors").read_bytes()
    assert frozen == (tmp_path / "separate" / "codec" / "codec.safetensors").read_bytes()
    joint = {"trains": ["codec", "restorer"], "start": start, "objective": RPO}
    joint["start"] = start | {"codec": "separate/codec/trunk.safetensors"}
    trainer = arm(photos, tmp_path, "llicm", joint, out=tmp_path / "llicm")
    assert trainer.rows[-1]["step"] == 8 and trainer.rows[-1]["bpp"] > 0
    assert load_part("restorer", tmp_path / "llicm" / "restorer.safetensors").level_conditioned
    assert not load_part("restorer", tmp_path / "separate" / "restorer" / "restorer.safetensors").level_conditioned
    system = LLICM(
        load_part("codec", tmp_path / "llicm" / "codec.safetensors"),
        load_part("restorer", tmp_path / "llicm" / "restorer.safetensors"),
    )
    decoded, enhanced = system.decompress(system.compress(photos[0], 2))
    assert decoded.shape == enhanced.shape == photos[0].shape


def test_a_prefilter_is_before_the_codec_and_stays_as_it_is(photos, tmp_path):
    arm(photos, tmp_path, "codec", {"trains": ["codec"], "start": None, "objective": RDO})
    arm(photos, tmp_path, "restorer", {"trains": ["restorer"], "start": None, "objective": RESTORE})
    files = {"codec": "separate/codec/trunk.safetensors", "restorer": "separate/restorer/trunk.safetensors"}
    joint = {"trains": ["codec", "restorer"], "start": files, "objective": RPO}
    arm(photos, tmp_path, "plain", joint, out=tmp_path / "plain")
    joint["start"] = files | {"prefilter": "separate/restorer/restorer.safetensors"}
    arm(photos, tmp_path, "around", joint, out=tmp_path / "around")
    assert load_part("restorer", tmp_path / "around" / "restorer.safetensors").level_conditioned
    prefilter = (tmp_path / "around" / "prefilter.safetensors").read_bytes()
    assert prefilter == (tmp_path / "separate" / "restorer" / "restorer.safetensors").read_bytes()
    for part in ("codec", "restorer"):
        assert (tmp_path / "around" / f"{part}.safetensors").read_bytes() != (
            tmp_path / "plain" / f"{part}.safetensors"
        ).read_bytes()
    # a restorer for a conventional codec can have one too
    spec = {"trains": ["restorer"], "codecs": {"webp": [10, 80]}, "objective": RESTORE}
    spec["start"] = {name: file for name, file in joint["start"].items() if name != "codec"}
    arm(photos, tmp_path, "webp", spec, out=tmp_path / "webp")
    assert load_part("restorer", tmp_path / "webp" / "restorer.safetensors").level_conditioned


def test_what_is_coded_and_compared_is_what_the_prefilter_makes_of_x(photos):
    """D = 0 means that the codec gives back the prefiltered picture, not X."""
    torch.manual_seed(0)
    codec, prefilter = make_codec(**CODEC), make_restorer(**RESTORER)
    with torch.no_grad():
        prefilter.affine.bias.fill_(1.0)
    system, seen = LLICM(codec, None, prefilter=prefilter.eval()), []
    codec.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    class Spy(Objective):
        def __call__(self, output, x, ideal, lmbda):
            seen.append(x)
            return super().__call__(output, x, ideal, lmbda)

    stream = PairStream(photos, TASKS, 64, 4, 0, 0.0, (0.0, 1.0), 1, 10)
    Trainer(
        system, ["codec"], Spy(**RDO), stream, TASKS,
        steps=1, warmup=1, lr=1e-3, clip=1.0, precision="fp32", seed=0, log_every=1,
    ).run()  # fmt: skip
    x = stream.batch(0).degraded
    given, compared = seen
    assert torch.equal(given, compared) and torch.allclose(given, prefilter(x).clamp(0, 1), atol=1e-5)
    assert not torch.allclose(given, x, atol=1e-2)


def test_published_weights_take_the_place_of_the_trunk(photos, tmp_path):
    spec = {"trains": ["codec"], "start": None, "objective": RDO}
    arm(photos, tmp_path, "codec", spec)
    published, again = tmp_path / "published", tmp_path / "again"
    published.mkdir()
    shutil.copy(tmp_path / "separate/codec/codec.safetensors", published)
    trainer = arm(photos, tmp_path, "codec", spec, out=again, init=published)
    assert [row["step"] for row in trainer.rows] == [6, 8]  # after a trunk of 4 updates
    assert (again / "trunk.safetensors").read_bytes() == (published / "codec.safetensors").read_bytes()
    names = ("trunk.safetensors", "codec.safetensors")
    before, after = (load_part("codec", again / name).g_a[1].weight for name in names)
    assert not torch.equal(before, after)
    # an arm that is not published, and one that starts from others, know nothing of it
    other = arm(photos, tmp_path, "other", spec, init=published)
    assert other.rows[0]["step"] == 2
    started = spec | {"start": {"codec": "separate/codec/trunk.safetensors"}}
    arm(photos, tmp_path, "codec", started, out=tmp_path / "started", init=published)
    assert not (tmp_path / "started/trunk.safetensors").exists()


def test_published_weights_of_another_size_are_refused(photos, tmp_path):
    spec = {"trains": ["restorer"], "start": None, "objective": RESTORE}
    arm(photos, tmp_path, "restorer", spec)
    with pytest.raises(
        UserError, match="restorer.safetensors: has width 8, but params.yaml wants 16; .* init: scratch"
    ):
        arm(photos, tmp_path, "restorer", spec, restorer=RESTORER | {"width": 16}, init=tmp_path / "separate/restorer")


# --- the diffusion restorer ---


def by_itself(diffusion="x0"):
    own = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 1.0, "diffusion": diffusion}
    return {"trains": ["restorer"], "start": None, "restorer": IRSDE, "steps": 4, "trunk": 2, "objective": own}


@pytest.mark.parametrize("weights", [{"gamma": 1.0, "perception": {"log_mse": 1.0}}, {"gamma": 0.0, "delta": 1.0}])
def test_what_the_diffusion_restorer_learns_from_reaches_the_encoder(weights):
    torch.manual_seed(0)
    system = LLICM(make_codec(**CODEC), make_restorer(**IRSDE))
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    output = system(x, torch.tensor([1.0, 2.0]), None, ideal, "x0")
    loss, _ = Objective(alpha=0.0, beta=0.0, **weights)(output, x, ideal, None)
    loss.backward()
    assert system.codec.decide[-1].weight.grad.abs().sum() > 0
    by_hand = (output.enhanced - ideal).abs().mean((1, 2, 3))
    assert torch.allclose(output.diffusion, by_hand, rtol=1e-5)


def test_the_diffusion_restorers_own_loss_is_part_of_the_objective():
    torch.manual_seed(0)
    system = LLICM(None, make_restorer(**IRSDE))
    x, ideal = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    output = system(x, ideal=ideal)
    loss, _ = Objective(0.0, 0.0, 0.01, {}, {"log_mse": 1.0}, 3.0)(output, x, ideal, None)
    by_hand = 0.01 * DISTANCES["log_mse"](output.enhanced, ideal) + 3 * output.diffusion
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    direct = LLICM(None, make_restorer(**RESTORER))
    with pytest.raises(UserError, match="delta needs a restorer named irsde"):
        Objective(0.0, 0.0, 0.0, delta=1.0)(direct(x, ideal=ideal), x, ideal, None)


@pytest.mark.parametrize("diffusion", ["x0", "noise", "paper"])
def test_diffusion_by_itself_and_joined_to_the_codec(photos, tmp_path, diffusion):
    arm(photos, tmp_path, "codec", {"trains": ["codec"], "start": None, "objective": RDO})
    trainer = arm(photos, tmp_path, "irsde", by_itself(diffusion))
    assert trainer.steps == trainer.rows[-1]["step"] == 4
    folder = tmp_path / "separate" / "irsde"
    trunk, restorer = (load_file(folder / f"{name}.safetensors") for name in ("trunk", "restorer"))
    assert any(not torch.equal(value, restorer[name]) for name, value in trunk.items())
    start = {"codec": "separate/codec/codec.safetensors", "restorer": "separate/irsde/trunk.safetensors"}
    joint = {"trains": ["codec", "restorer"], "start": start, "steps": 4, "trunk": 2, "objective": RPO}
    trainer = arm(photos, tmp_path, "llicm-irsde", joint, out=tmp_path / "joint")
    assert [row["step"] for row in trainer.rows] == [4], "it goes on where the trunk ends"
    again = tmp_path / "again"
    arm(photos, tmp_path, "llicm-irsde", joint, out=again)
    for part in ("codec", "restorer"):
        assert (again / f"{part}.safetensors").read_bytes() == (tmp_path / f"joint/{part}.safetensors").read_bytes()
    frozen = (tmp_path / start["codec"]).read_bytes()
    assert (again / "codec.safetensors").read_bytes() != frozen, "the codec is trained too"
    system = LLICM(*(load_part(part, again / f"{part}.safetensors") for part in ("codec", "restorer")))
    assert system.restorer.level_conditioned and system.restorer.steps == 2
    data = system.compress(photos[0], 2)
    first, second = (system.decompress(data)[1] for _ in range(2))
    assert first.shape == photos[0].shape and torch.equal(first, second), "sampling is deterministic"


def test_missing_start_is_named(photos, tmp_path):
    spec = {"trains": ["restorer"], "start": {"restorer": "separate/none.safetensors"}, "objective": RESTORE}
    with pytest.raises(UserError, match="none.safetensors"):
        arm(photos, tmp_path, "adapted", spec)


# --- what steers the restorer ---


def test_context_of_an_arm(vlm_folder, tmp_path):
    assert restorer_context("none", TASKS, tmp_path) is None
    assert restorer_context("oracle", TASKS, tmp_path) == {"words": TASKS}
    assert restorer_context("degradation", TASKS, vlm_folder) == {"degradation": 16, "content": 0}
    assert restorer_context("both", TASKS, vlm_folder) == {"degradation": 16, "content": 16}
    with pytest.raises(UserError, match="none, degradation, both or oracle, not 'content'"):
        restorer_context("content", TASKS, vlm_folder)
    with pytest.raises(UserError, match="dvc repro"):
        restorer_context("both", TASKS, tmp_path)


def test_arms_of_the_ablation(photos, tmp_path, vlm_folder):
    arm(photos, tmp_path, "codec", {"trains": ["codec"], "start": None, "objective": RDO})
    spec = {"trains": ["restorer"], "start": {"codec": "separate/codec/codec.safetensors"}, "objective": RESTORE}
    kinds = {"none": type(None), "degradation": Conditioner, "both": Conditioner, "oracle": Oracle}
    weights = {}
    for context, kind in kinds.items():
        steered = spec | {"context": context, "steps": 2}
        trainer = arm(photos, tmp_path, context, steered, out=tmp_path / context, vlm=vlm_folder)
        assert isinstance(trainer.system.conditioner, kind) and trainer.rows[-1]["step"] == trainer.steps == 2
        assert trainer.hints == (1.0 if context == "oracle" else TRAINING["told"])
        restorer = load_part("restorer", tmp_path / context / "restorer.safetensors")
        assert restorer.level_conditioned and not (tmp_path / context / "trunk.safetensors").exists()
        weights[context] = restorer.state_dict()
        fresh = make_restorer(**RESTORER, context=restorer.config["context"]).steering
        assert set(fresh) == {"none": set(), "both": {"degradation", "content"}}.get(context, {"degradation"})
    frozen = (tmp_path / "both" / "codec.safetensors").read_bytes()
    assert frozen == (tmp_path / "separate" / "codec" / "codec.safetensors").read_bytes()
    with pytest.raises(UserError, match="not 'neither'"):
        arm(photos, tmp_path, "x", spec | {"context": "neither"}, vlm=vlm_folder)


class Listener(torch.nn.Module):
    """A guide that notes what it is told."""

    def __init__(self):
        super().__init__()
        self.heard, self.place = [], None

    def to(self, device):
        self.place = device
        return super().to(device)

    def forward(self, decoded, hints=None):
        self.heard.append(hints)
        return Context()


def listen(photos, tasks, mixed, hints):
    torch.manual_seed(0)
    conditioner = Listener()
    stream = PairStream(photos, tasks, 32, 6, 0, 0.0, (0.0, 1.0), 1, 10, mixed=mixed)
    trainer = Trainer(
        LLICM(None, make_restorer(**RESTORER), conditioner), ["restorer"], Objective(**RESTORE), stream, tasks,
        steps=4, warmup=1, lr=1e-3, clip=1.0, precision="fp32", seed=0, log_every=4, hints=hints,
    )  # fmt: skip
    assert conditioner.place == trainer.accelerator.device, "the guide is no part of the system, yet must go where it goes"
    (row,) = trainer.run()
    return conditioner.heard, row, [stream.batch(step) for step in range(4)]


def test_what_the_guide_is_told_in_training(photos):
    tasks = ["noisy", "hazy", "low-light"]
    heard, row, batches = listen(photos, tasks, mixed=0.5, hints=1.0)
    for hints, batch in zip(heard, batches, strict=True):
        pairs = zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        assert hints == [degradation_text(tasks[i] for i in pair if i >= 0) for pair in pairs]
    assert any(", " in text for hints in heard for text in hints)
    some, _, _ = listen(photos, tasks, mixed=0.5, hints=0.5)
    silent = [text is None for hints in some for text in hints]
    assert 4 <= sum(silent) <= 20
    for hints, full in zip(some, heard, strict=True):
        assert all(text in (None, loud) for text, loud in zip(hints, full, strict=True))
    assert listen(photos, tasks, mixed=0.5, hints=0.0)[0] == [None] * 4


def test_mixed_rows_are_of_no_task_in_the_log(photos):
    alone, mixed = (listen(photos, TASKS, share, 0.0)[1] for share in (0.0, 1.0))
    assert {f"psnr/{task}" for task in TASKS} < set(alone)
    assert set(mixed) == {"step", "loss", "bpp"}


def test_a_restorer_is_adapted_to_conventional_codecs(photos, tmp_path):
    arm(photos, tmp_path, "restorer", {"trains": ["restorer"], "start": None, "objective": RESTORE})
    spec = {
        "trains": ["restorer"], "start": {"restorer": "separate/restorer/trunk.safetensors"}, "objective": RESTORE,
        "codecs": {"webp": [5, 80], "jpeg": [5, 70]},
    }  # fmt: skip
    for out in ("once", "again"):
        trained = arm(photos, tmp_path, "conventional", spec, out=tmp_path / out)
    files = [tmp_path / out / "restorer.safetensors" for out in ("once", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    restorer = load_part("restorer", files[0])
    assert restorer.level_conditioned and not load_part("restorer", tmp_path / "separate/restorer/restorer.safetensors").level_conditioned
    assert restorer.level.weight.abs().sum() > 0, "the quality must reach the restorer"
    assert trained.system.codec is None and trained.step == TRAINING["trunk"] + TRAINING["branch"]


def test_what_the_transcoder_makes(photos):
    x = torch.stack([photo[:, :64, :64] for photo in photos * 8])
    torch.manual_seed(3)
    decoded, quality = Transcoder({"webp": [0, 100], "heic": [0, 51]})(x)
    error = (decoded - x).square().mean((1, 2, 3))
    assert ((0 <= quality) & (quality <= 1)).all() and len(set(quality.tolist())) > 8
    assert torch.corrcoef(torch.stack([quality, error.log()]))[0, 1] < -0.5
    with pytest.raises(UserError, match="codec 'bpg' is unknown; choose one of learned, raw, avif"):
        Transcoder({"bpg": [0, 1]})
    low, _ = Transcoder({"webp": [1, 1]})(x)
    assert torch.equal(low, Transcoder({"webp": [1, 1]})(x)[0])


def test_a_specialist_sees_its_task_alone(photos, tmp_path):
    spec = {"trains": ["restorer"], "start": None, "objective": RESTORE, "tasks": ["hazy"]}
    trained = arm(photos, tmp_path, "specialist", spec)
    assert trained.stream.tasks == ("hazy",)
    assert not [name for row in trained.rows for name in row if "noisy" in name]


def test_an_arm_has_one_kind_of_codec(photos, tmp_path):
    spec = {"trains": ["codec"], "start": None, "objective": RDO, "codecs": {"webp": [5, 80]}}
    with pytest.raises(UserError, match="arm 'x' has codecs, so it can neither train"):
        arm(photos, tmp_path, "x", spec)
