# SPDX-License-Identifier: Apache-2.0
"""The training loop, and the models of a study."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small import CODEC, DIRECT, IRSDE, start, study

from llicm.data.stream import PairStream
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.objectives import Objective
from llicm.registry import CODECS, RESTORERS
from llicm.training.loop import Trainer, learning_rate
from llicm.training.models import restorer_context, schedule, train_model
from llicm.training.transcoder import Transcoder
from llicm.vlm.clip import degradation_text
from llicm.vlm.conditioner import Conditioner, Oracle
from llicm.vlm.context import Context
from llicm.weights import load_part

TASKS = ["noisy", "hazy"]
TRAINING = {
    "batch": 4, "crop": 64, "pretraining": 4, "fine_tuning": 4, "lr": 1e-3, "warmup": 2, "precision": "fp32",
    "log_every": 2, "checkpoint_every": 2, "hint_share": 0.5,
}  # fmt: skip
DATA = {"dead_leaves_share": 0.5, "pool": 2, "refresh": 10, "severity": [0.0, 1.0], "mixed": 0.25}
OBJECTIVES = {
    "rd": {"alpha": 1.0, "beta": 1.0, "distortion": {"mse": 1.0}},
    "restore": {"gamma": 0.01, "perception": {"log_mse": 1.0}},
    "rpo": {"alpha": 0.1, "beta": 1.0, "gamma": 1.0, "distortion": {"mse": 1.0}, "perception": {"log_mse": 1.0}},
    **{name: {"delta": 1.0, "diffusion": name} for name in ("x0", "noise", "paper")},
}
RDO = {"trains": ["codec"], "objective": "rd", "codec": CODEC, "start": start()}
RESTORER = {"trains": ["restorer"], "objective": "restore", "restorer": DIRECT, "start": start()}
PRETRAINED = start(codec="rdo/pretrained.safetensors", restorer="restorer/pretrained.safetensors")
JOINT = {"trains": ["codec", "restorer"], "objective": "rpo", "start": PRETRAINED}


@pytest.fixture(scope="module")
def photos():
    coarse = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return list(torch.nn.functional.interpolate(coarse, size=(140, 150), mode="bicubic").clamp(0, 1))


@pytest.fixture
def train(photos, tmp_path):
    """Train a model, which starts from others in the same folder; by default its weights go there."""

    def run(name, model, out=None, checkpoint=None, init=None):
        known = {"rdo": RDO, "restorer": RESTORER, "irsde": RESTORER, name: model}
        parameters = study(known, OBJECTIVES, tasks=TASKS, data=DATA, training=TRAINING, seed=0)
        return train_model(
            name, parameters, photos=photos, paired=None, models=tmp_path, out=out or tmp_path / name, init=init,
            checkpoint=checkpoint,
        )  # fmt: skip

    return run


def loop(photos, system, trains, objective, tasks=TASKS, mixed=0.0, steps=3, crop=64, **settings):
    """A trainer of a system, and its stream."""
    stream = PairStream(photos, tasks, crop, 6, 0, 0.0, (0.0, 1.0), 1, 10, mixed=mixed)
    settings = {"warmup": 1, "lr": 1e-3, "max_grad_norm": 1.0, "precision": "fp32", "seed": 0} | settings
    return Trainer(system, trains, objective, stream, tasks, steps=steps, **{"log_every": 1} | settings)


def test_schedule():
    rate = [learning_rate(s, peak=1.0, warmup=10, steps=210) for s in range(211)]
    assert rate[0] == 0.1 and rate[9] == rate[10] == 1.0
    assert rate[110] == pytest.approx(0.5) and rate[210] == pytest.approx(0)
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_updates_of_a_model():
    models = {"rdo": RDO, "own": RDO | {"updates": 9, "pretraining": 7}, "short": RDO | {"updates": 3}}
    parameters = study(models, OBJECTIVES, training=TRAINING)
    updates = [schedule(model, parameters) for model in parameters.models.values()]
    assert updates == [(8, 4), (9, 7), (3, 0)]


def test_frozen_parts_do_not_move(photos):
    torch.manual_seed(0)
    system = LLICM(CODECS.make(**CODEC), RESTORERS.make(**DIRECT))
    before = copy.deepcopy(system.state_dict())
    loop(photos, system, ["restorer"], Objective(**OBJECTIVES["restore"])).run()
    moved = {n for n, v in system.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(n.startswith("restorer.") for n in moved)


def test_all_parts_are_modules_and_the_trainer_sets_nothing_on_them(photos, tiny_daclip):
    torch.manual_seed(0)
    steered = DIRECT | {"context": {"degradation": 16, "content": 16}}
    parts = {
        "codec": CODECS.make(**CODEC), "restorer": RESTORERS.make(**steered), "prefilter": RESTORERS.make(**steered),
        "conditioner": Conditioner(copy.deepcopy(tiny_daclip), "windows"),
    }  # fmt: skip
    system = LLICM(**parts)
    assert dict(system.named_children()) == parts, "what the system holds moves with it to another device"
    assert not hasattr(system, "most")
    attributes = set(vars(system))
    before = copy.deepcopy(system.state_dict())
    trainer = loop(photos, system, ["codec", "restorer"], Objective(**OBJECTIVES["rpo"]), steps=1)
    gradients = {}
    trainer.optimizer.zero_grad = lambda **_: gradients.update(
        {name: value.grad for name, value in system.named_parameters()}
    )
    trainer.run()
    assert set(vars(system)) - {"_is_accelerate_prepared"} == attributes
    reached = {name.partition(".")[0] for name, value in gradients.items() if value is not None}
    assert reached == {"codec", "restorer"}
    assert any(name.startswith("prefilter.") for name in gradients)
    assert any(name.startswith("conditioner.") for name in gradients)
    moved = {n.partition(".")[0] for n, v in system.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"codec", "restorer"}


def test_the_gradient_of_each_part_is_limited_by_itself(photos):
    torch.manual_seed(0)
    system = LLICM(CODECS.make(**CODEC), RESTORERS.make(**DIRECT))
    trainer = loop(photos, system, ["codec", "restorer"], Objective(**OBJECTIVES["rpo"]), steps=1, max_grad_norm=1e-3)
    norms = {}
    trainer.optimizer.zero_grad = lambda **_: norms.update(
        {
            name: torch.cat([p.grad.flatten() for p in part if p.grad is not None]).norm().item()
            for name, part in trainer.parameters.items()
        }
    )
    trainer.run()
    assert norms == {"codec": pytest.approx(1e-3, rel=0.01), "restorer": pytest.approx(1e-3, rel=0.01)}


def test_other_parts_cannot_be_trained(photos):
    with pytest.raises(UserError, match="can train prefilter, codec and restorer, not 'vlm'"):
        loop(photos, LLICM(None, None), ["vlm"], Objective(**OBJECTIVES["restore"]))


def test_divergence_is_told(photos):
    system = LLICM(None, RESTORERS.make(**DIRECT))
    with torch.no_grad():
        system.restorer.affine.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged before step 1: lower training.lr"):
        loop(photos, system, ["restorer"], Objective(**OBJECTIVES["restore"])).run()


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
def test_an_interrupted_run_ends_in_the_same_bytes(train, tmp_path, saves):
    whole = train("rdo", RDO, out=tmp_path / "whole")
    memory = Memory(interrupt_after=saves)
    with pytest.raises(KeyboardInterrupt):
        train("rdo", RDO, tmp_path / "broken", memory)
    memory.left = None
    resumed = train("rdo", RDO, tmp_path / "resumed", memory)
    assert memory.finished and resumed.rows == whole.rows
    for name in ("codec.safetensors", "pretrained.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_average_of_the_weights_is_kept_beside_them_and_resumed(photos):
    """Its decay begins small; a resumed run has the same; without one the weights stay as they are."""

    def begin(average):
        torch.manual_seed(0)
        return loop(photos, LLICM(CODECS.make(**RDO["codec"]), None), ["codec"], Objective(beta=1.0), average=average)

    whole, seen = begin(0.5), []
    wanted = [p.clone() for p in whole.parameters["codec"]]
    for step in range(3):
        whole.run(until=step + 1)
        seen.append([p.detach().clone() for p in whole.parameters["codec"]])
        decay = min(0.5, (step + 1) / (step + 10))
        wanted = [decay * old + (1 - decay) * new for old, new in zip(wanted, seen[-1], strict=True)]
    first, second = begin(0.5), begin(0.5)
    first.run(until=2)
    second.restore(first.state())
    second.run()
    for trainer in (whole, second):
        trainer.use_average()
        for weight, average in zip(trainer.parameters["codec"], wanted, strict=True):
            assert torch.allclose(weight, average, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(wanted, seen[-1], strict=True))
    plain = begin(0.0)
    plain.run()
    plain.use_average()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters["codec"], seen[-1], strict=True))


def test_checkpoints_are_where_the_log_has_a_row(photos, tmp_path):
    parameters = study({"rdo": RDO}, OBJECTIVES, tasks=TASKS, data=DATA, training=TRAINING | {"checkpoint_every": 3})
    with pytest.raises(UserError, match="checkpoint_every must be a multiple of training.log_every"):
        train_model("rdo", parameters, photos=photos, paired=None, models=tmp_path, out=tmp_path / "rdo")


@pytest.mark.parametrize("restorer", [DIRECT, IRSDE], ids=["direct", "irsde"])
def test_models_build_on_each_other(train, photos, tmp_path, restorer):
    train("rdo", RDO)
    train("restorer", RESTORER | {"restorer": restorer})
    adapted = RESTORER | {"restorer": None, "start": PRETRAINED | {"codec": "rdo/codec.safetensors"}}
    train("adapted", adapted)
    frozen = (tmp_path / "adapted" / "codec.safetensors").read_bytes()
    assert frozen == (tmp_path / "rdo" / "codec.safetensors").read_bytes()
    trainer = train("llicm", JOINT)
    assert trainer.rows[-1]["step"] == 8 and trainer.rows[-1]["bpp"] > 0
    assert load_part("restorer", tmp_path / "llicm" / "restorer.safetensors").level_conditioned
    assert not load_part("restorer", tmp_path / "restorer" / "restorer.safetensors").level_conditioned
    system = LLICM(*(load_part(kind, tmp_path / "llicm" / f"{kind}.safetensors") for kind in ("codec", "restorer")))
    decoded, enhanced = system.decompress(system.compress(photos[0], 2))
    assert decoded.shape == enhanced.shape == photos[0].shape


def test_a_prefilter_is_before_the_codec_and_stays_as_it_is(train, tmp_path):
    train("rdo", RDO)
    train("restorer", RESTORER)
    train("plain", JOINT)
    before = PRETRAINED | {"prefilter": "restorer/restorer.safetensors"}
    train("around", JOINT | {"start": before})
    assert load_part("restorer", tmp_path / "around" / "restorer.safetensors").level_conditioned
    prefilter = (tmp_path / "around" / "prefilter.safetensors").read_bytes()
    assert prefilter == (tmp_path / "restorer" / "restorer.safetensors").read_bytes()
    for part in ("codec", "restorer"):
        around, plain = ((tmp_path / name / f"{part}.safetensors").read_bytes() for name in ("around", "plain"))
        assert around != plain
    # a restorer for a conventional codec can have one too
    webp = RESTORER | {"restorer": None, "codecs": {"webp": [10, 80]}, "start": before | {"codec": "none"}}
    train("webp", webp)
    assert load_part("restorer", tmp_path / "webp" / "restorer.safetensors").level_conditioned


def test_what_is_coded_and_compared_is_what_the_prefilter_makes_of_x(photos):
    """D = 0 means that the codec gives back the prefiltered picture, not X."""
    torch.manual_seed(0)
    codec, prefilter = CODECS.make(**CODEC), RESTORERS.make(**DIRECT)
    with torch.no_grad():
        prefilter.affine.bias.fill_(1.0)
    system, seen = LLICM(codec, None, prefilter=prefilter.eval()), []
    codec.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    class Spy(Objective):
        def __call__(self, output, x, prefiltered, ideal, lmbda):
            seen.append(prefiltered)
            return super().__call__(output, x, prefiltered, ideal, lmbda)

    trainer = loop(photos, system, ["codec"], Spy(**OBJECTIVES["rd"]), steps=1)
    trainer.run()
    x = trainer.stream.batch(0).degraded
    given, compared = seen
    assert torch.equal(given, compared) and torch.allclose(given, prefilter(x).clamp(0, 1), atol=1e-5)
    assert not torch.allclose(given, x, atol=1e-2)


def test_a_prefilter_is_trained_with_what_follows_it(train, tmp_path):
    train("rdo", RDO)
    train("restorer", RESTORER)
    before = PRETRAINED | {"prefilter": "restorer/restorer.safetensors"}
    train("joint", JOINT | {"trains": ["prefilter", "codec", "restorer"], "start": before})
    trained, was = (load_part("prefilter", tmp_path / f) for f in ("joint/prefilter.safetensors", before["prefilter"]))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), was.parameters(), strict=True))


@pytest.mark.parametrize("against", ["input", "prefiltered", "ideal"])
def test_every_reference_of_d_pulls_the_prefilter(photos, against):
    """A codec that only rounds: D alone is the distance of X_r from what `against` names."""
    prefilter = RESTORERS.make(**DIRECT)
    system = LLICM(CODECS.make(**CODEC), None, prefilter=prefilter)
    objective = Objective(alpha=1.0, distortion={"mse": 1.0}, against=against)
    trainer = loop(photos, system, ["prefilter"], objective, steps=1)
    before = [p.clone() for p in prefilter.parameters()]
    trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, prefilter.parameters(), strict=True))


def test_published_weights_take_the_place_of_pretraining(train, tmp_path):
    train("rdo", RDO)
    published, again = tmp_path / "published", tmp_path / "again"
    published.mkdir()
    shutil.copy(tmp_path / "rdo/codec.safetensors", published / "rdo.safetensors")
    trainer = train("rdo", RDO, out=again, init=published)
    assert [row["step"] for row in trainer.rows] == [6, 8]  # after a pretraining of 4 updates
    assert (again / "pretrained.safetensors").read_bytes() == (published / "rdo.safetensors").read_bytes()
    names = ("pretrained.safetensors", "codec.safetensors")
    before, after = (load_part("codec", again / name).g_a[1].weight for name in names)
    assert not torch.equal(before, after)
    # a model that is not published, and one that starts from others, know nothing of it
    other = train("other", RDO, init=published)
    assert other.rows[0]["step"] == 2
    started = RDO | {"start": start(codec="restorer/codec.safetensors")}
    (tmp_path / "restorer").mkdir()
    shutil.copy(tmp_path / "rdo/pretrained.safetensors", tmp_path / "restorer/codec.safetensors")
    train("rdo", started, out=tmp_path / "started", init=published)
    assert not (tmp_path / "started/pretrained.safetensors").exists()


def test_published_weights_of_another_size_are_refused(train, tmp_path):
    train("restorer", RESTORER)
    wide = RESTORER | {"restorer": DIRECT | {"width": 16}}
    with pytest.raises(
        UserError, match="restorer.safetensors: has width 8, but params.yaml wants 16; .* init: scratch"
    ):
        train("restorer", wide, init=tmp_path / "restorer")


# --- the diffusion restorer ---


@pytest.mark.parametrize("diffusion", ["x0", "noise", "paper"])
def test_diffusion_by_itself_and_joined_to_the_codec(train, photos, tmp_path, diffusion):
    train("rdo", RDO)
    own = {"updates": 4, "pretraining": 2}
    trainer = train("irsde", RESTORER | own | {"restorer": IRSDE, "objective": diffusion})
    assert trainer.steps == trainer.rows[-1]["step"] == 4
    pretrained, restorer = (load_file(tmp_path / f"irsde/{name}.safetensors") for name in ("pretrained", "restorer"))
    assert any(not torch.equal(value, restorer[name]) for name, value in pretrained.items())
    files = start(codec="rdo/codec.safetensors", restorer="irsde/pretrained.safetensors")
    joint = JOINT | own | {"start": files}
    trainer = train("llicm-irsde", joint)
    assert [row["step"] for row in trainer.rows] == [4], "it goes on where pretraining ends"
    again = tmp_path / "again"
    train("llicm-irsde", joint, out=again)
    for part in ("codec", "restorer"):
        first = (tmp_path / "llicm-irsde" / f"{part}.safetensors").read_bytes()
        assert (again / f"{part}.safetensors").read_bytes() == first
    frozen = (tmp_path / files["codec"]).read_bytes()
    assert (again / "codec.safetensors").read_bytes() != frozen, "the codec is trained too"
    system = LLICM(*(load_part(part, again / f"{part}.safetensors") for part in ("codec", "restorer")))
    assert system.restorer.level_conditioned and system.restorer.steps == 2
    data = system.compress(photos[0], 2)
    first, second = (system.decompress(data)[1] for _ in range(2))
    assert first.shape == photos[0].shape and torch.equal(first, second), "sampling is deterministic"


def test_missing_start_is_named(train):
    with pytest.raises(UserError, match="rdo/pretrained.safetensors: no such weights"):
        train("llicm", JOINT)


# --- what steers the restorer ---


def test_context_of_a_model(vlm_folder, tmp_path):
    assert restorer_context("none", TASKS, tmp_path) is None
    assert restorer_context("oracle", TASKS, tmp_path) == {"words": TASKS}
    assert restorer_context("degradation", TASKS, vlm_folder) == {"degradation": 16, "content": 0}
    assert restorer_context("both", TASKS, vlm_folder) == {"degradation": 16, "content": 16}
    with pytest.raises(UserError, match="dvc repro"):
        restorer_context("both", TASKS, tmp_path)


def test_models_of_the_ablation(train, tmp_path, vlm_folder):
    shutil.copytree(vlm_folder, tmp_path / "vlm")
    train("rdo", RDO)
    steered = RESTORER | {"updates": 2, "start": start(codec="rdo/codec.safetensors", vlm="vlm")}
    kinds = {"none": type(None), "degradation": Conditioner, "both": Conditioner, "oracle": Oracle}
    for context, kind in kinds.items():
        trainer = train(context, steered | {"context": context})
        assert isinstance(trainer.system.conditioner, kind) and trainer.rows[-1]["step"] == trainer.steps == 2
        assert trainer.hint_share == (1.0 if context == "oracle" else TRAINING["hint_share"])
        restorer = load_part("restorer", tmp_path / context / "restorer.safetensors")
        assert restorer.level_conditioned and not (tmp_path / context / "pretrained.safetensors").exists()
        fresh = RESTORERS.make(**DIRECT, context=restorer.config["context"]).steering
        assert set(fresh) == {"none": set(), "both": {"degradation", "content"}}.get(context, {"degradation"})
    frozen = (tmp_path / "both" / "codec.safetensors").read_bytes()
    assert frozen == (tmp_path / "rdo" / "codec.safetensors").read_bytes()


class Listener(torch.nn.Module):
    """A conditioner that notes the hints it gets."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, decoded, hints=None):
        self.heard.append(hints)
        return Context()


def listen(photos, tasks, mixed, hint_share):
    torch.manual_seed(0)
    system = LLICM(None, RESTORERS.make(**DIRECT), Listener())
    trainer = loop(
        photos, system, ["restorer"], Objective(**OBJECTIVES["restore"]), tasks, mixed, 4, 32, log_every=4,
        hint_share=hint_share,
    )  # fmt: skip
    (row,) = trainer.run()
    return system.conditioner.heard, row, [trainer.stream.batch(step) for step in range(4)]


def test_the_hints_of_training(photos):
    tasks = ["noisy", "hazy", "low-light"]
    heard, row, batches = listen(photos, tasks, 0.5, 1.0)
    for hints, batch in zip(heard, batches, strict=True):
        pairs = zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        assert hints == [degradation_text(tasks[i] for i in pair if i >= 0) for pair in pairs]
    assert any(", " in text for hints in heard for text in hints)
    some, _, _ = listen(photos, tasks, 0.5, 0.5)
    silent = [text is None for hints in some for text in hints]
    assert 4 <= sum(silent) <= 20
    for hints, full in zip(some, heard, strict=True):
        assert all(text in (None, loud) for text, loud in zip(hints, full, strict=True))
    assert listen(photos, tasks, 0.5, 0.0)[0] == [None] * 4


def test_mixed_rows_are_of_no_task_in_the_log(photos):
    alone, mixed = (listen(photos, TASKS, share, 0.0)[1] for share in (0.0, 1.0))
    assert {f"psnr/{task}" for task in TASKS} < set(alone)
    assert set(mixed) == {"step", "loss", "bpp"}


# --- conventional codecs, and one task alone ---


def test_a_restorer_is_adapted_to_conventional_codecs(train, tmp_path):
    train("restorer", RESTORER)
    model = RESTORER | {
        "restorer": None, "start": start(restorer="restorer/pretrained.safetensors"),
        "codecs": {"webp": [5, 80], "jpeg": [5, 70]},
    }  # fmt: skip
    for out in ("once", "again"):
        trained = train("conventional", model, out=tmp_path / out)
    files = [tmp_path / out / "restorer.safetensors" for out in ("once", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    restorer = load_part("restorer", files[0])
    assert restorer.level_conditioned
    assert not load_part("restorer", tmp_path / "restorer/restorer.safetensors").level_conditioned
    assert restorer.level.weight.abs().sum() > 0, "the quality must reach the restorer"
    assert trained.system.codec is None and trained.step == TRAINING["pretraining"] + TRAINING["fine_tuning"]


def test_what_the_transcoder_makes(photos):
    x = torch.stack([photo[:, :64, :64] for photo in photos * 8])
    torch.manual_seed(3)
    decoded, quality = Transcoder({"webp": [0, 100], "heic": [0, 51]})(x)
    error = (decoded - x).square().mean((1, 2, 3))
    assert ((0 <= quality) & (quality <= 1)).all() and len(set(quality.tolist())) > 8
    assert torch.corrcoef(torch.stack([quality, error.log()]))[0, 1] < -0.5
    with pytest.raises(UserError, match="codec 'bpg' is unknown; choose one of raw, avif"):
        Transcoder({"bpg": [0, 1]})
    low, _ = Transcoder({"webp": [1, 1]})(x)
    assert torch.equal(low, Transcoder({"webp": [1, 1]})(x)[0])


def test_a_specialist_sees_its_task_alone(train):
    trained = train("specialist", RESTORER | {"tasks": ["hazy"]})
    assert trained.stream.tasks == ("hazy",)
    assert not [name for row in trained.rows for name in row if "noisy" in name]
