"""The store of encoded pictures and captions: what it computes, what it keeps, and what it survives."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from control_script import SCRIPT, arguments, call, losses
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from diffusers_ext import cache as cache_module
from diffusers_ext.cache import Digests, Store, digest_of, fingerprint
from diffusers_ext.control.hint import init_hint, new_controlnet
from diffusers_ext.control.objective import ControlObjective
from diffusers_ext.control.previews import ControlPreview
from diffusers_ext.data.batches import collate
from diffusers_ext.data.files import Row
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.rows import read_image_folder
from diffusers_ext.diffusion.base import Base, family_of, load_base
from diffusers_ext.diffusion.bases.encoders import vae_config
from diffusers_ext.diffusion.bases.stable_diffusion_1 import StableDiffusionEncoders
from diffusers_ext.diffusion.encoded import CachedMoments, Encoded, EncoderCache, check_fixed, encode_in_memory
from diffusers_ext.diffusion.files import BaseFiles
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.errors import InputError
from diffusers_ext.randomness import MicroBatches, Share
from diffusers_ext.toy import circles as fill50k

SPEC = {"value": "squares", "dtype": "torch.float32"}
KEYS = [digest_of(str(number)) for number in range(20)]
TRANSFORM = {"fit": "cover", "resolution": 64}
processes = multiprocessing.get_context("fork")


def square(position: int) -> torch.Tensor:
    return torch.full((2, 3), float(position) ** 2)


def unexpected(argument):
    raise AssertionError(f"unexpected: {argument}")


def open_store(folder) -> Store:
    return Store(folder, SPEC, Digests(folder))


def shards(folder) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD", 4)


@pytest.fixture
def filled(tmp_path, small_shards):
    """A folder of 20 values in five files."""
    assert open_store(tmp_path).fill(KEYS, square) == 20
    assert len(shards(tmp_path)) == 5
    return tmp_path


def check_values(store: Store) -> None:
    for position, key in enumerate(KEYS):
        assert torch.equal(store[key], square(position))


# The store.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_come_back_in_their_type_from_mapped_files(tmp_path, dtype):
    values = torch.randn(20, 4, 5).to(dtype)
    open_store(tmp_path).fill(KEYS, lambda position: values[position])
    store = open_store(tmp_path)
    for again in (store, pickle.loads(pickle.dumps(store))):
        assert all(again[key].dtype == dtype and torch.equal(again[key], value) for key, value in zip(KEYS, values))
    (shard,) = shards(tmp_path)
    assert str(shard) in Path("/proc/self/maps").read_text()
    assert store[KEYS[0]].data_ptr() - store[KEYS[1]].data_ptr() == -values[0].nbytes  # views of one map
    assert len(pickle.dumps(store)) < 4096  # the maps stay behind
    with pytest.raises(KeyError):
        store["0" * 64]


def test_a_filled_store_computes_nothing(filled):
    store = open_store(filled)
    assert store.fill(KEYS, unexpected) == 0 and len(store) == 20
    check_values(store)


def test_equal_keys_are_computed_once(tmp_path):
    seen = []
    assert open_store(tmp_path).fill([*KEYS[:3], *KEYS[:3]], lambda at: seen.append(at) or square(at)) == 3
    assert seen == [0, 1, 2]


def test_what_others_computed_meanwhile_is_taken(tmp_path):
    early = open_store(tmp_path)
    open_store(tmp_path).fill(KEYS, square)
    assert early.fill(KEYS, unexpected) == 0
    check_values(early)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def flip_unnoticed(path: Path) -> None:
    """One bit of one value, size and modification time as before."""
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path) -> None:
    """A whole and valid shard under another's name."""
    other = next(each for each in shards(path.parent) if each != path)
    shutil.copy(other, path)


@pytest.mark.parametrize("harm", [truncate, cut_to_nothing, flip_unnoticed, swap])
def test_a_damaged_shard_is_named_dropped_and_computed_again(filled, capsys, harm):
    harmed = shards(filled)[2]
    harm(harmed)
    computed = []
    store = open_store(filled)
    assert f"{harmed}: damaged; removed" in capsys.readouterr().out and not harmed.exists()
    assert store.fill(KEYS, lambda position: computed.append(position) or square(position)) == 4
    assert len(set(computed)) == 4 and harmed.exists()  # the same values have the same name
    check_values(open_store(filled))


def test_an_unchanged_shard_is_not_read_again(filled, monkeypatch):
    monkeypatch.setattr(cache_module, "SETTLED", -1)
    first = Digests(filled)
    Store(filled, SPEC, first)
    first.save()
    monkeypatch.setattr(cache_module, "sha256", unexpected)
    check_values(Store(filled, SPEC, Digests(filled)))
    with pytest.raises(AssertionError, match="unexpected"):
        flip_unnoticed(shards(filled)[0])
        Store(filled, SPEC, Digests(filled))


def test_what_was_computed_before_a_failure_is_kept(tmp_path, small_shards):
    def stumble(position):
        if position == 6:
            raise KeyboardInterrupt
        return square(position)

    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path).fill(KEYS, stumble)
    store = open_store(tmp_path)
    assert store.missing(KEYS) == KEYS[6:]
    assert store.fill(KEYS, square) == 14
    check_values(store)


def slowly(position: int) -> torch.Tensor:
    time.sleep(0.02)
    return square(position)


def fill_in_a_process(folder: Path, report: Path, encode=slowly, keys=KEYS):
    def work():
        torch.set_num_threads(1)
        computed = []
        store = open_store(folder)
        store.fill(keys, lambda position: computed.append(keys[position]) or encode(position))
        check_values(store) if keys is KEYS else None
        report.write_text(json.dumps(computed))

    process = processes.Process(target=work)
    process.start()
    return process


def test_a_kill_loses_one_shard_and_no_lock(tmp_path, small_shards):
    process = fill_in_a_process(tmp_path, tmp_path / "report")
    while len(shards(tmp_path)) < 2:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = open_store(tmp_path)
    left = len(store.missing(KEYS))
    assert 0 < left <= 12 and left % 4 == 0
    assert store.fill(KEYS, square) == left
    check_values(store)


def test_processes_share_the_work(tmp_path, small_shards):
    """Every value once, by whom does not matter; another run with other data in between as well."""
    reports = [tmp_path / f"report-{number}" for number in range(3)]
    orders = [KEYS, KEYS, [KEYS[7], *KEYS[3:6], digest_of("its own")]]
    work = [fill_in_a_process(tmp_path, report, keys=keys) for report, keys in zip(reports, orders)]
    for process in work:
        process.join(30)
        assert process.exitcode == 0
    computed = [key for report in reports for key in json.loads(report.read_text())]
    assert sorted(computed) == sorted([*KEYS, digest_of("its own")])
    assert json.loads(reports[0].read_text()) and json.loads(reports[1].read_text())
    assert not list(tmp_path.rglob("*.partial"))


def test_a_process_takes_over_from_one_that_died(tmp_path, small_shards):
    stuck = fill_in_a_process(tmp_path, tmp_path / "a", encode=lambda position: time.sleep(60))
    time.sleep(0.3)
    other = fill_in_a_process(tmp_path, tmp_path / "b")
    while len(shards(tmp_path)) < 4:
        time.sleep(0.01)
    time.sleep(0.3)
    assert other.is_alive()  # it waits for the four that the first one holds
    os.kill(stuck.pid, signal.SIGKILL)
    other.join(30)
    assert other.exitcode == 0 and len(json.loads((tmp_path / "b").read_text())) == 20


def test_folders_that_cannot_hold_a_cache_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/squares-.* cannot be written"):
        open_store(tmp_path / "file")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: usage._replace(free=20 * 24 - 1))
    with pytest.raises(InputError, match=r"need 0\.00 GiB"):
        open_store(tmp_path).fill(KEYS, square)


def test_digests_follow_every_change(tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    file.write_bytes(b"0123")
    digests = Digests(tmp_path)
    assert digests(file) == Digests(tmp_path)(file) and not digests.known  # too fresh to be remembered
    monkeypatch.setattr(cache_module, "SETTLED", -1)
    before = digests(file)
    digests.save()
    assert Digests(tmp_path).known
    flip_unnoticed(file)
    assert Digests(tmp_path)(file) != before
    digests.path.write_text("[")
    assert Digests(tmp_path)(file) != before


# Pictures and captions.


def files_of(model, dtype=torch.float32) -> BaseFiles:
    return BaseFiles(str(model), Path(model) / "vae", dtype, full_precision_vae=False)


class Counting(StableDiffusionEncoders):
    """Encoders that count what they are asked for."""

    pictures = captions = 0

    def moments(self, pixels):
        self.pictures += len(pixels)
        return super().moments(pixels)

    def embed(self, captions):
        self.captions += len(captions)
        return super().embed(captions)


@pytest.fixture(scope="module")
def pipe(untrained):
    return load_base(str(untrained))


@pytest.fixture
def encoders(pipe):
    return Counting(pipe.vae, pipe.text_encoder, pipe.tokenizer)


@pytest.fixture
def data(circles, tmp_path) -> Path:
    """The circles, to be changed."""
    return shutil.copytree(circles, tmp_path / "circles")


def make_cached(data, model, folder, load, seed=0, drop=0.5, dtype=torch.float32, side=64, limit=None):
    """Return the cached data set and how many (pictures, captions) were encoded for it."""
    rows = read_image_folder(str(data), limit=limit)
    dataset = Pairs(rows, side, seed, drop)
    cache = EncoderCache(folder, files_of(model, dtype), load)
    moments = cache.moments([row.image for row in rows], dataset.picture, {"fit": "cover", "resolution": side})
    texts = cache.texts(row.text for row in rows)
    return Encoded(dataset, moments, texts, conditions=True), tuple(cache.computed.values())


def never():
    raise AssertionError("the encoders were loaded though nothing was missing")


def test_exactly_what_changed_is_encoded_again(data, untrained, encoders, tmp_path):
    folder = tmp_path / "cache"
    model = shutil.copytree(untrained, tmp_path / "model")
    captions = len({row.text for row in read_image_folder(str(data))})

    def counts(**changes):
        encoders.pictures = encoders.captions = 0
        _, computed = make_cached(data, model, folder, lambda: encoders, **changes)
        assert computed == (encoders.pictures, encoders.captions)
        return computed

    assert counts() == (48, captions + 1)  # and the empty one
    assert make_cached(data, model, folder, never, seed=7, drop=0.1)[1] == (0, 0)
    assert make_cached(data, model, folder, never, limit=10)[1] == (0, 0)
    assert counts(side=32, limit=10) == (10, 0)

    picture = data / "images" / "000003.png"
    ImageOps.mirror(Image.open(picture)).save(picture)
    assert counts() == (1, 0)
    lines = (data / "metadata.jsonl").read_text().splitlines()
    lines[5] = json.dumps({**json.loads(lines[5]), "text": "an unheard-of circle"})
    (data / "metadata.jsonl").write_text("\n".join(lines))
    assert counts() == (0, 1)
    shutil.copy(data / "images" / "000004.png", data / "images" / "000006.png")  # known under another name
    assert counts() == (0, 0)

    change_weights(model / "vae" / "diffusion_pytorch_model.safetensors")
    assert counts() == (47, 0)  # two pictures are alike now
    change_weights(model / "text_encoder" / "model.safetensors")
    captions = len({row.text for row in read_image_folder(str(data))})
    assert counts() == (0, captions + 1)
    assert counts(dtype=torch.bfloat16)[0] == 47
    change_weights(model / "unet" / "diffusion_pytorch_model.safetensors")
    assert make_cached(data, model, folder, never)[1] == (0, 0)


def change_weights(path: Path) -> None:
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file({name: value.clone() for name, value in weights.items()}, path, {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_values_are_those_of_the_encoders(circles, untrained, tmp_path, dtype):
    pipe = load_base(str(untrained), dtype)
    encoders = StableDiffusionEncoders(pipe.vae, pipe.text_encoder, pipe.tokenizer)
    cached, _ = make_cached(circles, untrained, tmp_path, lambda: encoders, dtype=dtype)
    assert len(cached) == 48
    for epoch, index in ((0, 0), (1, 7), (2, 47)):
        plain, sample = cached.dataset[epoch, index], cached[epoch, index]
        assert sample["moments"].dtype == torch.float32 and sample["text_embeddings"].dtype == dtype
        assert torch.equal(sample["moments"], encoders.moments(plain["pixel_values"][None])[0])
        assert torch.equal(sample["text_embeddings"], encoders.embed([plain["text"]])["text_embeddings"][0])
        assert torch.equal(sample["conditioning_pixel_values"], plain["conditioning_pixel_values"])
        assert sample["text"] == plain["text"] and sample["key"] == (epoch, index)


def test_values_are_made_under_the_trainings_autocast(circles, untrained, encoders, tmp_path):
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    cache = EncoderCache(tmp_path, files_of(untrained), lambda: encoders, autocast=autocast)
    with autocast():
        inside = encoders.embed(["red circle"])["text_embeddings"][0]
    cached = cache.texts(["red circle"])["red circle"]["text_embeddings"]
    assert torch.equal(cached, inside.float()) and not torch.equal(
        cached, encoders.embed(["red circle"])["text_embeddings"][0]
    )


def test_dropping_stays_live(circles, untrained, encoders, tmp_path):
    """Every caption is seen and dropped, with the embedding that belongs to it, at the asked rate."""
    cached, _ = make_cached(circles, untrained, tmp_path, lambda: encoders, drop=0.5)
    empty = encoders.embed([""])["text_embeddings"][0]
    dropped = torch.zeros(20, 48)
    for epoch in range(20):
        for index in range(48):
            sample = cached[epoch, index]
            dropped[epoch, index] = torch.equal(sample["text_embeddings"], empty)
            assert dropped[epoch, index] == (sample["text"] == "")
    assert dropped.any(0).all() and not dropped.all(0).any()
    assert dropped.mean() == pytest.approx(0.5, abs=0.05)


def test_dropping_stays_live_over_200_pairs():
    """Each caption seen and dropped within 20 epochs, where one draw for all of them leaves half unseen."""
    rows = [Row(Path(f"{index}.png"), (f"caption {index}",), None, "") for index in range(200)]
    texts = {
        text: {"text_embeddings": torch.full((1,), float(text != ""))} for text in ("", *(row.text for row in rows))
    }
    cached = Encoded(Pairs(rows, 64, 0, 0.5), [torch.zeros(2, 1, 1, 1)] * 200, texts)
    seen = torch.cat(
        [torch.stack([cached[epoch, at]["text_embeddings"] for at in range(200)]).T for epoch in range(20)]
    )
    assert seen.shape == (20, 200) and seen.any(0).all() and not seen.all(0).any()
    assert 0.47 <= 1 - seen.mean() <= 0.53


def test_what_values_were_computed_under_is_part_of_their_key(circles, untrained, encoders, tmp_path):
    """A run under another autocast, or from another variant's weights, must not be given these."""
    caption = ["red circle"]
    for about, computed in (({"autocast": "no"}, 2), ({"autocast": "bf16"}, 2), ({"autocast": "no"}, 0)):
        for variant in (None, "fp16"):
            cache = EncoderCache(tmp_path, files_of(untrained), lambda: encoders, {**about, "variant": variant})
            cache.texts(caption)
            assert cache.computed["texts"] == computed, (about, variant)


def test_captions_alone_can_be_cached(circles, untrained, encoders, tmp_path):
    """For pictures cut anew in every epoch."""
    cached, _ = make_cached(circles, untrained, tmp_path, lambda: encoders)
    sample = Encoded(cached.dataset, None, cached.texts)[0, 3]
    assert torch.equal(sample["pixel_values"], cached.dataset.picture(3)) and "moments" not in sample
    assert torch.equal(sample["text_embeddings"], cached[0, 3]["text_embeddings"])
    with pytest.raises(KeyError, match="'unknown' is not among the captions"):
        cached.texts["unknown"]


def test_a_random_geometry_is_refused():
    check_fixed(random_flip=False, random_crop=False)
    with pytest.raises(InputError, match="leave out --random_flip"):
        check_fixed(random_flip=True, random_crop=False)


def test_an_incomplete_model_is_named(untrained, tmp_path):
    with pytest.raises(InputError, match="nothing: missing or empty"):
        fingerprint(untrained, ["vae", "nothing"], Digests(tmp_path))


def test_in_memory_and_on_disk_agree(circles, untrained, encoders, tmp_path):
    """Up to the rounding of batches."""
    cached, _ = make_cached(circles, untrained, tmp_path, lambda: encoders)
    assert isinstance(cached.moments, CachedMoments) and len(cached.moments) == 48
    moments = encode_in_memory(cached.dataset, encoders, batch_size=20)
    torch.testing.assert_close(moments, torch.stack([cached.moments[index] for index in range(48)]))
    drawn = fill50k.Fill50k(3, 64)
    assert set(Encoded(drawn, encode_in_memory(drawn, encoders))[0, 2]) == {"key", "text", "moments"}


# Training on cached values.


class OneByOne(StableDiffusionEncoders):
    """The encoders of an uncached run that takes one picture at a time."""

    def moments(self, pixels):
        return torch.cat([super(OneByOne, self).moments(each[None]) for each in pixels])


def train(pipe, encoders, dataset, steps=60, batch=2, autocast=None) -> list[float]:
    """Train a fresh ControlNet and return its losses."""
    controlnet = new_controlnet(pipe.unet, 8)
    init_hint(controlnet, "data", getattr(dataset, "dataset", dataset).sample_conditions(8), seed=0)
    diffusion = Diffusion(path_of(pipe.scheduler), seed=0)
    objective = ControlObjective(controlnet.float(), Base(family_of(pipe.unet), pipe.unet, encoders), diffusion)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-4)
    found = []
    for keys in MicroBatches(len(dataset), 0, Share(batch, steps)):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = objective(collate([dataset[key] for key in keys]))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_cached_training_equals_uncached(circles, untrained, pipe, tmp_path):
    parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer)
    cached, _ = make_cached(circles, untrained, tmp_path, lambda: StableDiffusionEncoders(*parts), side=32)
    absent = StableDiffusionEncoders(None, None, None, vae_config(untrained / "vae"))
    from_cache = train(pipe, absent, cached)
    assert from_cache == train(pipe, OneByOne(*parts), cached.dataset)
    batched = train(pipe, StableDiffusionEncoders(*parts), cached.dataset)
    assert max(abs(a - b) for a, b in zip(from_cache, batched)) <= 1e-5
    assert len(set(from_cache)) == 60


def test_cached_training_equals_uncached_in_bfloat16(circles, untrained, tmp_path):
    """Weights in bfloat16 under autocast, as --mixed_precision bf16 has them."""
    pipe = load_base(str(untrained), torch.bfloat16)
    parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer)
    rows = read_image_folder(str(circles), limit=6)
    dataset, half = Pairs(rows, 32, 0, 0.5), torch.bfloat16
    load, autocast = lambda: StableDiffusionEncoders(*parts), lambda: torch.autocast("cpu", half)
    cache = EncoderCache(tmp_path, files_of(untrained, half), load, autocast=autocast)
    moments = cache.moments([row.image for row in rows], dataset.picture, TRANSFORM)
    cached = Encoded(dataset, moments, cache.texts(dataset.captions()), conditions=True)
    absent = StableDiffusionEncoders(None, None, None, pipe.vae.config)
    with_cache = train(pipe, absent, cached, steps=4, batch=2, autocast=half)
    assert with_cache == train(pipe, OneByOne(*parts), dataset, steps=4, batch=2, autocast=half)


def test_the_vaes_configuration_is_read_without_a_vae(untrained, pipe, tmp_path):
    folder = shutil.copytree(untrained / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    del config["scaling_factor"]  # as in Stable Diffusion 1.5
    (folder / "config.json").write_text(json.dumps(config))
    assert vae_config(folder).scaling_factor == 0.18215
    assert vae_config(untrained / "vae").block_out_channels == pipe.vae.config.block_out_channels


@pytest.mark.launch
def test_the_script_trains_the_same_from_a_cache(untrained, circles, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache"
    common = ["--resolution", 32, "--max_train_steps", 8, "--train_batch_size", 1, "--logging_steps", 1]
    with_cache = [*common, "--encoder_cache_dir", folder]

    def go(name, *more):
        call(*arguments(untrained, circles, tmp_path / name, *more))
        return losses(tmp_path / name)

    uncached, cold = go("uncached", *common), go("cold", *with_cache)
    assert "moments: 44 of 0.5 KiB" in capsys.readouterr().out
    specs = [json.loads(path.read_text()) for path in folder.glob("*/spec.json")]
    assert {spec["value"] for spec in specs} == {"moments", "texts"}
    assert all(spec["autocast"] == "no" and "variant" in spec for spec in specs)
    samples = [tmp_path / name / "samples" / "step-000008.png" for name in ("uncached", "cold")]
    assert samples[0].read_bytes() == samples[1].read_bytes()  # drawn with parts loaded for that

    for part in (AutoencoderKL, CLIPTextModel):
        monkeypatch.setattr(part, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.setattr(ControlPreview, "__call__", lambda self, step: {})
    assert go("warm", *with_cache) == cold == uncached
    other = go("other", *with_cache, "--learning_rate", 1e-4, "--seed", 9, "--dataloader_num_workers", 2)
    assert len(other) == 8 and other != cold
    assert "moments: 44 of 0.5 KiB" in capsys.readouterr().out


@pytest.mark.launch
def test_ranks_share_a_cold_cache(launch, untrained, circles, tmp_path):
    more = [
        "--resolution",
        32,
        "--max_train_steps",
        1,
        "--train_batch_size",
        1,
        "--num_validation_images",
        1,
        "--encoder_cache_dir",
        tmp_path / "cache",
    ]
    done = launch(SCRIPT, *arguments(untrained, circles, tmp_path / "run", *more), processes=2)
    assert done.stdout.count("moments: 44 of") == 1  # the main process says so, once
    keys = []
    for shard in shards(tmp_path / "cache"):
        with safe_open(shard, "pt") as file:
            keys += file.metadata()["keys"].split()
    assert len(keys) == len(set(keys)) == 48 + 1 + len({row.text for row in read_image_folder(str(circles))})


def test_buckets_and_a_cache_go_together(untrained, tmp_path):
    """Pictures of two shapes: cached losses are those without a cache, and nothing is encoded twice."""
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for index in range(12):
        wide = (96, 48) if index % 2 else (64, 64)
        for name in ("picture", "edges"):
            Image.effect_noise(wide, 60 + index).convert("RGB").save(data / f"{name}{index}.png")
        names = {"file_name": f"picture{index}.png", "conditioning_image_file_name": f"edges{index}.png"}
        lines.append(json.dumps({**names, "text": f"noise {index}"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    given = ["--aspect_buckets", "--resolution", 128, "--max_train_steps", 4, "--logging_steps", 1]
    call(*arguments(untrained, data, tmp_path / "plain", *given, "--train_batch_size", 1))
    cached = [*given, "--train_batch_size", 1, "--encoder_cache_dir", tmp_path / "cache"]
    call(*arguments(untrained, data, tmp_path / "first", *cached))
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    call(*arguments(untrained, data, tmp_path / "again", *cached))
    assert losses(tmp_path / "plain") == losses(tmp_path / "first") == losses(tmp_path / "again")
    assert len({path.parent for path in stores if path.parent.name.startswith("moments")}) >= 2
    assert stores == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
