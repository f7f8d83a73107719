"""Checkpoints: found, fetched, verified, loaded, refused."""

import dataclasses
import hashlib
import re
from pathlib import Path

import mxnet as mx
import numpy as np
import oracle
import pytest

import pydmobilenet
from pydmobilenet import catalog, network
from pydmobilenet.checkpoints import formats, weights
from pydmobilenet.errors import BadFileError, MissingFileError
from pydmobilenet.gluon.inference import fuse
from pydmobilenet.gluon.network import load_weights

MODEL = "pyd-add-11-0.25"  # small, and of the form that the authors' files have


def authors_name(name: str) -> str:
    """The name that the authors would have given to a parameter of ours."""
    reverse = {ours: theirs for theirs, ours in weights.BLOCK_PARTS.items() if not theirs.startswith("body")}
    outer = {ours: theirs for theirs, ours in weights.OUTER_PARTS.items()}
    kind = "aux" if "running" in name else "arg"
    match = re.fullmatch(r"stages\.(\d)\.(\d+)\.(.+)\.(\w+)", name)
    if match:
        stage, block, part, leaf = match.groups()
        return f"{kind}:some_prefix/stg{stage}/blk{block}/{reverse[part]}_{leaf}"
    part, leaf = name.rsplit(".", 1)
    return f"{kind}:some_prefix/{outer[part]}_{leaf}"


@pytest.fixture
def net():
    return pydmobilenet.get_model(MODEL)


@pytest.fixture
def file(net, tmp_path):
    """A file in the authors' format."""
    arrays = {authors_name(name): p.data() for name, p in net._collect_params_with_prefix().items()}
    mx.nd.save(str(tmp_path / "authors.params"), arrays)
    return tmp_path / "authors.params"


@pytest.fixture
def checkpoint(file):
    content = file.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return catalog.PublishedFile("models/family/a-0000.params", len(content), hashlib.sha256(content).hexdigest(), git)


def values(net):
    return {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}


def test_the_authors_format_loads(net, file):
    other = pydmobilenet.get_model(MODEL)
    load_weights(other, file)
    for name, value in values(net).items():
        np.testing.assert_array_equal(values(other)[name], value)


def test_our_own_format_loads(net, tmp_path):
    net.save_parameters(str(tmp_path / "ours.params"))
    other = pydmobilenet.get_model(MODEL)
    load_weights(other, tmp_path / "ours.params")
    np.testing.assert_array_equal(values(other)["head.dense.weight"], values(net)["head.dense.weight"])


def randomised(model, classes=7):
    net = pydmobilenet.get_model(model, classes=classes)
    for parameter in net.collect_params().values():
        parameter.set_data(mx.nd.random.uniform(shape=parameter.shape))
    return net


def written(net, way, directory):
    """The file that Gluon writes of a network in one of its ways."""
    if way == "export":
        net.hybridize()
        net(mx.nd.zeros((1, 3, 32, 32)))
        net.export(str(directory / "x"))
        return directory / "x-0000.params"
    getattr(net if way == "save_parameters" else net.collect_params(), way)(str(directory / "x"))
    return directory / "x"


@pytest.mark.parametrize("model", ["resnet-11-0.25", "mobilenet-20-0.25", MODEL, "pyd-concat-11-0.25", "wrn-10-1"])
@pytest.mark.parametrize("way", ["export", "save_parameters", "save"])
def test_what_gluon_writes_of_a_network_loads(model, way, tmp_path):
    net = randomised(model)
    arrays = weights.load(written(net, way, tmp_path), net.description)
    assert arrays.keys() == values(net).keys()
    for name, value in values(net).items():
        np.testing.assert_array_equal(arrays[name], value)


def test_gluon_s_numbers_stand_for_layers_in_the_order_of_their_making(tmp_path):
    """What was exported once must not come to mean other layers, of which many have the same shape."""
    made = {
        "batchnorm": ["stem.norm", *(f"stages.0.0.norm{number}" for number in (1, 2, 3, 4)), "stages.1.0.norm1"],
        "conv": ["stem.conv", *(f"stages.0.0.{part}" for part in ("reduce", "spatial.conv3", "spatial.conv5"))],
    }
    net = randomised(MODEL)
    file = written(net, "export", tmp_path)
    found = weights.read(file, net.description)
    for kind, layers in made.items():
        leaf = "gamma" if kind == "batchnorm" else "weight"
        numbered = {}
        for name, array in formats.read_params(file).items():
            match = re.fullmatch(rf"arg:{kind}(\d+)_{leaf}", name)
            if match:
                numbered[int(match[1])] = array
        for layer, number in zip(layers, sorted(numbered)):
            np.testing.assert_array_equal(found[f"{layer}.{leaf}"], numbered[number])


@pytest.mark.parametrize(("model", "classes"), [("pyd-add-20-0.25", 7), ("resnet-11-0.25", 7), (MODEL, 9)])
def test_an_export_of_another_network_is_refused_in_a_line(model, classes, tmp_path):
    file = written(randomised(model, classes), "export", tmp_path)
    with pytest.raises(BadFileError, match=r"is of another network, or of none|does not fit"):
        load_weights(pydmobilenet.get_model(MODEL, classes=7), file)


def test_an_export_that_lacks_a_parameter_or_was_fused_is_refused(tmp_path):
    net = randomised(MODEL)
    arrays = formats.read_params(written(net, "export", tmp_path))
    (tmp_path / "less").write_bytes(formats.dump_params(dict(list(arrays.items())[1:])))
    for file in (tmp_path / "less", written(fuse(net), "export", tmp_path)):
        with pytest.raises(BadFileError, match="is of another network, or of none"):
            load_weights(pydmobilenet.get_model(MODEL, classes=7), file)


def test_a_wide_resnet_gets_a_head_of_another_size_and_is_described(tmp_path):
    file = written(randomised("wrn-10-1"), "save_parameters", tmp_path)
    assert load_weights(pydmobilenet.get_model("wrn-10-1", classes=3), file, head="optional")
    with pytest.raises(BadFileError, match="the file is of wrn-10-1 with 7 classes"):
        load_weights(pydmobilenet.get_model("wrn-16-2", classes=7), file)
    weights.write(tmp_path / "copy.params", weights.load(file, catalog.describe("wrn-10-1", outputs=7)), {})
    assert (tmp_path / "copy.params").read_bytes() == file.read_bytes()


def test_a_converted_file_loads_by_gluon_alone(net, file, tmp_path):
    weights.write(tmp_path / "gluon.params", weights.load(file, catalog.describe(MODEL)), {})
    other = pydmobilenet.get_model(MODEL)
    other.load_parameters(str(tmp_path / "gluon.params"))
    np.testing.assert_array_equal(values(other)["head.dense.weight"], values(net)["head.dense.weight"])
    assert not list(tmp_path.glob("*.part"))


def test_a_conversion_to_nowhere_is_named(file, tmp_path):
    with pytest.raises(OSError, match=f"cannot write {tmp_path}/nowhere/x"):
        weights.write(tmp_path / "nowhere" / "x.params", weights.load(file, catalog.describe(MODEL)), {})


@pytest.mark.parametrize(
    ("model", "classes", "description"),
    [
        ("pyd-add-11-0.5", 10, "pyd-add-11-0.25 with 10 classes"),
        ("pyd-concat-11-0.25", 10, "pyd-add-11-0.25 with 10 classes"),
        ("pyd-add-20-0.25", 10, "pyd-add-11-0.25 with 10 classes"),
        ("mobilenet-11-0.25", 10, "pyd-add-11-0.25 with 10 classes"),
        (MODEL, 100, "pyd-add-11-0.25 with 10 classes"),
    ],
)
def test_a_file_of_another_network_is_refused_and_described(file, model, classes, description):
    other = pydmobilenet.get_model(model, classes=classes)
    before = values(other)
    with pytest.raises(BadFileError, match=rf"does not fit.*the file is of {description}"):
        load_weights(other, file)
    for name, value in before.items():
        np.testing.assert_array_equal(values(other)[name], value)


@pytest.mark.parametrize(
    "name",
    ["resnet-29-0.5", "mobilenet-29-1.5", "pyd-add-83-0.6", "pyd-concat-29-0.25", "pyd-add-11-0.125", "wrn-28-5"],
)
def test_files_are_described_by_what_is_in_them(name):
    arrays = oracle.random_arrays(catalog.describe(name, outputs=7))
    assert weights.identify(arrays) == f"{name} with 7 classes"
    wide = oracle.random_arrays(catalog.describe(name, "imagenet32", 7))
    form = "" if name.startswith("wrn") else ", in its ImageNet32 form"
    assert weights.identify(wide) == f"{name} with 7 classes{form}"
    wide.popitem()
    assert weights.identify(wide) == "another kind of network"


def test_every_family_of_the_same_shapes_is_named(monkeypatch):
    monkeypatch.setitem(network.FAMILIES, "pyd-max", network.FAMILIES["pyd-add"])
    arrays = oracle.random_arrays(catalog.describe("pyd-add-29-0.5"))
    assert weights.identify(arrays) == "pyd-add-29-0.5 with 10 classes or pyd-max-29-0.5 with 10 classes"


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_nothing_may_be_missing_left_over_or_of_another_shape(net, tmp_path, change):
    arrays = {name: p.data() for name, p in net._collect_params_with_prefix().items()}
    if change == "missing":
        del arrays["head.dense.bias"]
    elif change == "extra":
        arrays["head.extra.bias"] = mx.nd.zeros(3)
    else:
        arrays["stem.conv.weight"] = mx.nd.zeros((32, 3, 5, 5))
    mx.nd.save(str(tmp_path / "x.params"), arrays)
    with pytest.raises(BadFileError, match="does not fit"):
        load_weights(net, tmp_path / "x.params")


def test_a_parameter_that_comes_twice_is_refused(net, tmp_path):
    arrays = {authors_name(name): p.data() for name, p in net._collect_params_with_prefix().items()}
    arrays["arg:other_prefix/classifier/dense0_bias"] = mx.nd.ones(10)
    mx.nd.save(str(tmp_path / "x"), arrays)
    with pytest.raises(BadFileError, match=r"head\.dense\.bias twice"):
        load_weights(net, tmp_path / "x")


def test_more_behind_the_end_of_a_file_is_refused(net, file):
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(BadFileError, match="more behind its end"):
        load_weights(net, file)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 23, 24, 100, 5000, -1])
def test_a_truncated_file_is_refused(net, file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BadFileError, match="no MXNet parameter file, or a damaged one"):
        load_weights(net, file)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 99, b"\0" * 4096, b"\xff" * 4096])
def test_what_is_no_parameter_file_is_refused(net, tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadFileError, match="no MXNet parameter file"):
        load_weights(net, tmp_path / "x")


def test_other_peoples_parameters_are_refused(net, tmp_path):
    mx.nd.save(str(tmp_path / "x"), {"arg:vgg0_conv0_weight": mx.nd.zeros(3)})
    with pytest.raises(BadFileError, match="vgg0_conv0_weight"):
        load_weights(net, tmp_path / "x")
    mx.nd.save(str(tmp_path / "x"), [mx.nd.zeros(3)])
    with pytest.raises(BadFileError, match="no MXNet parameter file"):
        load_weights(net, tmp_path / "x")


def test_damaged_files_never_end_the_program(net, file):
    content = bytearray(file.read_bytes())
    rng, refused = np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        for position in rng.integers(0, 400, 2):
            damaged[position] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            load_weights(net, file)
        except BadFileError:
            refused += 1
    assert 20 < refused < 40  # the others damage a number, or nothing


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"])
def test_parameter_files_hold_what_mxnet_has_written(kind, tmp_path):
    arrays = {"a": mx.nd.array([[1, 2, 3]], dtype=kind), "ö": mx.nd.zeros((2, 1, 4), dtype=kind)}
    mx.nd.save(str(tmp_path / "x"), arrays)
    found = formats.read_params(tmp_path / "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.asnumpy(), strict=True)


def test_an_absent_file_is_named(net, tmp_path):
    with pytest.raises(MissingFileError, match="no such parameter file"):
        load_weights(net, tmp_path / "x")


@pytest.mark.parametrize("spot", ["a-0000.params", "family/a-0000.params", "models/family/a-0000.params"])
def test_a_checkpoint_is_found_flat_or_as_in_the_authors_repository(checkpoint, file, tmp_path, spot):
    target = tmp_path / "root" / spot
    target.parent.mkdir(parents=True)
    file.rename(target)
    assert weights.obtain(checkpoint, tmp_path / "root") == target


@pytest.mark.parametrize("place", ["project/models", "mxnet/models"])
def test_a_checkpoint_is_found_at_home(checkpoint, file, home, place):
    (home / place).mkdir(parents=True)
    target = file.rename(home / place / checkpoint.name)
    assert weights.obtain(checkpoint) == target


def test_a_checkpoint_is_downloaded_once(checkpoint, file, server, monkeypatch, home):
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", f"{server.url}/mirror/")
    server.files[f"/mirror/{checkpoint.path}"] = file.read_bytes()
    for _ in range(2):
        assert weights.obtain(checkpoint).read_bytes() == file.read_bytes()
    assert len(server.requests) == 1
    assert (home / "project" / "models" / checkpoint.name).exists()


def test_no_more_of_a_checkpoint_is_downloaded_than_was_published(checkpoint, file, server, monkeypatch):
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    server.files[f"/{checkpoint.path}"] = file.read_bytes()
    server.fault = "has no end"
    with pytest.raises(MissingFileError, match=f"has more than the {checkpoint.bytes} bytes of a-0000.params"):
        weights.obtain(checkpoint)


def test_a_checkpoint_of_which_only_the_git_hash_is_known_is_verified_too(checkpoint, file, server, monkeypatch):
    checkpoint = dataclasses.replace(checkpoint, sha256="", bytes=None)
    assert checkpoint.digest.startswith("git:")
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    server.files[f"/{checkpoint.path}"] = file.read_bytes()
    assert weights.obtain(checkpoint).exists()
    weights.obtain(checkpoint).write_bytes(b"other")
    with pytest.raises(BadFileError, match="git:"):
        weights.obtain(checkpoint)


def test_a_file_with_a_wrong_hash_is_neither_used_nor_replaced(checkpoint, tmp_path, server, monkeypatch, file):
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    server.files[f"/{checkpoint.path}"] = file.read_bytes()
    (tmp_path / "root").mkdir()
    wrong = tmp_path / "root" / checkpoint.name
    for content, words in ((b"my own network", "14 bytes, not"), (b"x" * checkpoint.bytes, "sha256:")):
        wrong.write_bytes(content)
        with pytest.raises(BadFileError, match=f"{wrong} is not the published file.*{words}"):
            weights.obtain(checkpoint, tmp_path / "root")
        assert wrong.read_bytes() == content


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("no/scheme", "No scheme supplied"),
        ("http://127.0.0.1:99999", "127.0.0.1:99999"),
        ("ftp://host", "No connection adapters"),
    ],
)
def test_name_an_invalid_mirror(checkpoint, tmp_path, monkeypatch, address, words):
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", address)
    with pytest.raises(MissingFileError, match=words):
        weights.obtain(checkpoint, tmp_path / "root")


def test_offline_a_miss_says_what_where_and_what_to_do(checkpoint, tmp_path, home):
    with pytest.raises(MissingFileError) as caught:
        weights.obtain(checkpoint, tmp_path / "root")
    for part in (checkpoint.name, f"{tmp_path}/root", f"{home}/mxnet/models", "refused", "put it into"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("pyd-add-29-1", "cifar100"), FileNotFoundError, "nearest: dataset='cifar100-coarse'"),
        (("pyd-add-83-0.6", "cifar10"), FileNotFoundError, "no weights of pyd-add-83-0.6"),
        (("wrn-28-2", "imagenet32"), FileNotFoundError, "no weights of wrn-28-2"),
    ],
)
def test_weights_that_were_never_published_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        pydmobilenet.get_model(*arguments, pretrained=True)


def test_with_other_classes_the_body_has_the_published_weights_and_the_head_fresh_ones():
    whole = values(pydmobilenet.get_model("pyd-add-29-0.25", "digits", pretrained=True))
    net = pydmobilenet.get_model("pyd-add-29-0.25", "digits", classes=37, pretrained=True)
    assert net(mx.nd.zeros((1, 3, 32, 32))).shape == (1, 37)
    for name, value in values(net).items():
        if not name.startswith("head.dense"):
            np.testing.assert_array_equal(value, whole[name], err_msg=name)
    assert values(net)["head.dense.weight"].std() > 0
    same = pydmobilenet.get_model("pyd-add-29-0.25", "digits", classes=10, pretrained=True)
    np.testing.assert_array_equal(values(same)["head.dense.weight"], whole["head.dense.weight"])


def test_names_translate():
    assert weights.structural_name("arg:p/stg1/blk0/body/conv1_weight") == "stages.1.0.spatial.conv3.weight"
    assert weights.structural_name("aux:p/conv0/batchnorm0_running_var") == "stem.norm.running_var"
    assert weights.structural_name("arg:p/classifier/conv0_bias") == "head.features.bias"
    assert weights.structural_name("arg:p/stg0/blk0/unknown_weight") is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_parameter_that_is_not_finite_is_refused_wherever_it_is_read(value, net, file, tmp_path):
    arrays = weights.read(file)
    name = "stages.1.0.norm1.gamma"
    dtype = np.float64 if abs(value) < np.inf else np.float32  # in single precision it is infinite
    arrays[name] = arrays[name].astype(dtype)
    arrays[name][1] = value
    path, target = tmp_path / "bad.params", tmp_path / "converted.params"
    path.write_bytes(formats.dump_params(arrays))
    before = values(net)
    for read in (
        lambda: formats.read_params(path),
        lambda: load_weights(net, path),
        lambda: load_weights(net, path, head="optional"),
        lambda: weights.write(target, weights.load(path, net.description), {}),
    ):
        with pytest.raises(BadFileError, match=rf"bad\.params holds numbers that are not finite: in '{name}'$"):
            read()
    assert not target.exists()
    for key, found in values(net).items():
        np.testing.assert_array_equal(found, before[key])


@pytest.mark.parametrize("content", ["/dev/zero", "/dev/urandom"])
def test_what_has_no_end_is_no_parameter_file(content):
    with pytest.raises(BadFileError, match="wrong first bytes"):
        formats.read_params(Path(content))


def test_a_conversion_leaves_a_file_of_the_users_own_alone(net, file, tmp_path):
    (tmp_path / "x.params.part").write_text("mine")
    weights.write(tmp_path / "x.params", weights.load(file, net.description), {})
    assert (tmp_path / "x.params.part").read_text() == "mine"
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"authors.params", "x.json", "x.params", "x.params.part"}
