"""The configuration of a training run: the recipes, their files, and the same keys on the command line."""

import argparse
import dataclasses
import re
import subprocess
import sys
import warnings

import pytest
import yaml
from helpers import ROOT

from pydmobilenet.cli import options
from pydmobilenet.errors import BadFileError, InvalidValueError, MissingFileError, UnusableError, UserError
from pydmobilenet.training import config
from pydmobilenet.training.recipe import configure, with_epochs

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MODEL = "pyd-add-29-0.25"
COMMON = {
    "image_size": 32,
    "val_fraction": 0,
    "test_fraction": 0,
    "patience": 0,
    "body_rate": 1,
    "augment": True,
    "flip": "random",
    "trivial_augment": False,
    "cutout": 0,
    "cutmix": 0,
    "ema": 0,
    "qat": False,
    "class_weights": "none",
    "accumulation_steps": 1,
    "decay": 0.1,
    "optimizer": "sgd",
    "momentum": 0.9,
    "clip_gradient": 0,
    "teacher_share": 0.9,
    "temperature": 4,
    "initialiser": "msra",
    "dtype": "float32",
    "seed": 0,
}
# The authors' recipes. Seed, accumulation_steps and keep_every are this project's own.
CIFAR = {
    **COMMON,
    "dataset": "cifar10",
    "epochs": 320,
    "batch_size": 128,
    "learning_rate": 0.1,
    "schedule": "step",
    "milestones": (150, 225),
    "warmup_epochs": 0,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": True,
    "mixup": 1,
    "mixup_off_epochs": 20,
    "label_smoothing": 0,
    "keep_every": 40,
}
IMAGENET32 = {
    **COMMON,
    "dataset": "imagenet32",
    "epochs": 120,
    "batch_size": 256,
    "learning_rate": 0.4,
    "schedule": "cosine",
    "milestones": (),
    "warmup_epochs": 5,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": False,
    "mixup": 0.2,
    "mixup_off_epochs": 0,
    "label_smoothing": 0.1,
    "keep_every": 10,
}
VALUES = {"model": MODEL, **CIFAR}
NEEDED = {"model": MODEL, "dataset": "folder:PHOTOS"}
# For each key a valid text that is not the value in VALUES, and what it stands for.
OTHERS = {
    "model": ("resnet-29-0.5", "resnet-29-0.5"),
    "dataset": ("digits", "digits"),
    "image_size": ("64", 64),
    "val_fraction": ("0.1", 0.1),
    "test_fraction": (".25", 0.25),
    "patience": ("5", 5),
    "epochs": ("400", 400),
    "batch_size": ("64", 64),
    "accumulation_steps": ("2", 2),
    "learning_rate": ("1e-4", 0.0001),
    "body_rate": ("0.1", 0.1),
    "schedule": ("cosine", "cosine"),
    "milestones": ("100,200,250", (100, 200, 250)),
    "decay": (".5", 0.5),
    "warmup_epochs": ("2.5", 2.5),
    "optimizer": ("adamw", "adamw"),
    "momentum": ("0", 0.0),
    "weight_decay": ("5e-4", 0.0005),
    "decay_norm_and_bias": ("false", False),
    "augment": ("false", False),
    "flip": ("alternating", "alternating"),
    "trivial_augment": ("true", True),
    "cutout": ("8", 8),
    "cutmix": ("0.5", 0.5),
    "ema": ("0.999", 0.999),
    "qat": ("true", True),
    "clip_gradient": ("1", 1.0),
    "mixup": ("0.2", 0.2),
    "mixup_off_epochs": ("0", 0),
    "label_smoothing": ("0.1", 0.1),
    "class_weights": ("balanced", "balanced"),
    "teacher_share": ("0.5", 0.5),
    "temperature": ("1", 1.0),
    "initialiser": ("xavier", "xavier"),
    "dtype": ("float16", "float16"),
    "seed": ("007", 7),
    "keep_every": ("0", 0),
}
WHOLE_1, WHOLE_0 = "a whole number from 1 to 2147483647", "a whole number from 0 to 2147483647"
ABOVE_0, FROM_0 = "a number above 0, at most 1000", "a number from 0 to 1000"
BELOW_1 = "a number from 0 and below 1"
MISTAKES = [
    *(("epochs", bad, f"{WHOLE_1}, or auto") for bad in ("0", "1.5", "true", "many")),
    *((key, bad, WHOLE_1) for key in ("batch_size", "accumulation_steps") for bad in ("0", "1.5", "true", "many")),
    *(
        (key, bad, WHOLE_0)
        for key in ("patience", "mixup_off_epochs", "seed", "keep_every", "cutout")
        for bad in ("-1", "0.5", "false", "nan")
    ),
    *(
        (key, bad, ABOVE_0)
        for key in ("learning_rate", "temperature")
        for bad in ("0", "-0.1", "true", "fast", "nan", "inf", "1e999")
    ),
    *(("image_size", bad, "a multiple of 4 from 8 to 1024") for bad in ("4", "30", "1028", "large")),
    *((key, bad, "a number above 0, at most 1") for key in ("decay", "teacher_share") for bad in ("0", "1.1", "nan")),
    *(("body_rate", bad, "a number from 0 to 1") for bad in ("-0.1", "1.1", "nan")),
    *(
        (key, bad, "a number from 0 to 0.5")
        for key in ("val_fraction", "test_fraction")
        for bad in ("-0.1", "0.51", "nan", "some")
    ),
    *(
        (key, bad, FROM_0)
        for key in ("warmup_epochs", "weight_decay", "clip_gradient", "mixup", "cutmix")
        for bad in ("-1", "inf", ".nan", "yes")
    ),
    *((key, bad, BELOW_1) for key in ("momentum", "label_smoothing", "ema") for bad in ("1", "-0.1", "nan", "none")),
    *(
        (key, bad, "true, false")
        for key in ("decay_norm_and_bias", "augment", "trivial_augment", "qat")
        for bad in ("1", "no", "0.0")
    ),
    *(("milestones", bad, "rising whole numbers from 1, as 150,225") for bad in ("225,150", "9,9", "0,9", "1.5", "9,")),
    ("schedule", "cosin", "step, cosine, htd"),
    ("flip", "alternate", "random, alternating"),
    ("optimizer", "adam", "sgd, adamw"),
    ("class_weights", "balance", "none, balanced"),
    ("initialiser", "msre", "xavier, msra"),
    ("dtype", "float64", "float32, bfloat16, float16"),
]


def parsed(*arguments):
    parser = options.Parser(prog="train.py")
    config.add_options(parser)
    return config.parse(vars(parser.parse_args(arguments)))


def option(key):
    return f"--{key.replace('_', '-')}"


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(("name", "recipe"), [("cifar", CIFAR), ("imagenet32", IMAGENET32)])
def test_the_authors_recipes_are_what_they_trained_with(name, recipe):
    assert vars(config.make({"model": MODEL, **config.read(name)})) == {"model": MODEL, **recipe}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_recipe_needs_a_model_or_for_folders_a_data_set_and_no_more(path):
    values = config.read(path)
    whole = {**NEEDED, **values}
    assert path.read_text().startswith("# ")
    made = config.make(whole)
    assert all(getattr(made, key) == value for key, value in values.items())
    for key in NEEDED.keys() - values.keys():
        with pytest.raises(InvalidValueError, match=f"^no {key} is given: add --{key} NAME, or {key} to the"):
            config.make({name: value for name, value in whole.items() if name != key})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_has_what_differs_from_its_base_and_nothing_else(path):
    base = yaml.safe_load(path.read_text()).get("base")
    below = {**config.DEFAULTS, **(config.read(base) if base else {})}
    own = [
        line.partition(":")[0] for line in path.read_text().splitlines() if line[0] != "#" and line != f"base: {base}"
    ]
    assert own == [key for key in config.FIELDS if key in own]
    same = [key for key in own if config.read(path)[key] == below.get(key)]
    assert same == (["body_rate", "warmup_epochs"] if path.stem == "qat" else [])  # it is laid over all recipes


def test_a_missing_key_has_its_default_which_is_of_the_type_that_a_file_gives():
    made = config.make({"model": MODEL, "dataset": "cifar10"})
    assert made == config.make({"model": MODEL, **config.read("cifar")})
    for key, value in vars(made).items():
        assert type(value) is type(OTHERS[key][1])
    assert parsed() == config.parse({"epochs": None}) == {}


def test_a_base_is_a_recipe_of_the_project_or_a_file_beside_its_own(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "mine.yaml").write_text("base: digits\nepochs: 8\nseed: 1\n")
    (tmp_path / "below" / "deeper.yaml").write_text("base: ../mine.yaml\nplain_epochs: 2\nseed: 2\n")
    read = config.read(tmp_path / "below" / "deeper.yaml")
    assert read == {**config.read("digits"), "epochs": 8, "seed": 2, "mixup_off_epochs": 2}
    assert "base" not in config.text(config.make({"model": MODEL, **read}))


@pytest.mark.parametrize("base", ["recipe.yaml", "./../here/recipe.yaml", "other.yaml"])
def test_bases_that_go_round_in_a_circle_are_refused(base, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "recipe.yaml").write_text(f"base: {base}\n")
    (tmp_path / "here" / "other.yaml").write_text("base: recipe.yaml\n")
    with pytest.raises(BadFileError, match=r"^[^\n]*\.yaml: base: [^\n]*recipe\.yaml has this file as its own base$"):
        config.read(tmp_path / "here" / "recipe.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("base: cifr\n", "recipe.yaml: base: no such file: {folder}/cifr; nearest: cifar"),
        ("base: bad.yaml\n", "{folder}/bad.yaml: unknown key 'epoch'; nearest: epochs"),
        ("base: [cifar, digits]\n", "recipe.yaml: base: no such file: {folder}/['cifar', 'digits']; nearest: "),
        ("basis: cifar\n", "{folder}/recipe.yaml: unknown key 'basis'; nearest: base"),
        ("base: .\n", "cannot read {folder}"),
    ],
)
def test_a_wrong_base_is_named_on_one_line(content, words, written, tmp_path):
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    with pytest.raises(UserError) as caught:
        config.read(written(content))
    assert words.format(folder=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_base_is_no_key_outside_of_files():
    with pytest.raises(InvalidValueError, match=r"^unknown key 'base'"):
        config.make({**VALUES, "base": "digits"})


def test_a_name_is_made_the_usual_one():
    assert config.make({**VALUES, "model": "pyd-add-29-1.0"}).model == "pyd-add-29-1"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_written_and_read_again(path, written):
    values = {**NEEDED, **config.read(path), "learning_rate": 1e-7, "weight_decay": 1 / 3, "decay": 1}
    made = with_epochs(config.make(values), 500, pretrained=True)
    assert config.make(config.read(written(config.text(made)))) == made


def test_a_folder_of_any_name_is_written_and_read_again(tmp_path, written):
    folder = tmp_path / "été: #1 'of' 2 \U0001f600" / ("long " * 30)
    (folder / "train" / "ant").mkdir(parents=True)
    made = config.make({**VALUES, "dataset": f"folder:{folder}"})
    assert config.make(config.read(written(config.text(made)))) == made


@pytest.mark.parametrize("key", config.FIELDS)
def test_every_key_can_be_set_in_a_file_and_on_the_command_line(key, written):
    text, value = OTHERS[key]
    assert value != VALUES[key]
    in_file = f"[{text}]" if key == "milestones" else text
    also = {"learning_rate": 0.1} if key == "optimizer" else {}  # each has its own
    file = written("".join(f"{name}: {text}\n" for name, text in {key: in_file, **also}.items()))
    assert parsed(option(key), text) == {key: value}
    assert config.read(file) == {key: value, **also}
    assert type(parsed(option(key), text)[key]) is type(value)
    others = {**VALUES, "dataset": "folder:PHOTOS"} if key == "image_size" else VALUES
    assert getattr(config.make({**others, **parsed(option(key), text)}), key) == value


def test_short_options_and_an_empty_list_of_milestones():
    assert parsed("-m", MODEL, "-d", "digits", "--milestones", "") == {
        "model": MODEL,
        "dataset": "digits",
        "milestones": (),
    }


@pytest.mark.parametrize(("old", "new"), config.OLD_KEYS.items())
def test_old_names_of_keys_are_read_but_not_beside_the_new_ones(old, new, written):
    text, value = OTHERS[new]
    assert config.read(written(f"{old}: {text}\n")) == parsed(option(old), text) == {new: value}
    path = written(f"{old}: {text}\n{new}: {text}\n")
    with pytest.raises(InvalidValueError) as caught:
        config.read(path)
    assert str(caught.value) == f"{path}: {old} is the old name of {new}: leave out {old}"


@pytest.mark.parametrize(("key", "bad", "allowed"), MISTAKES)
def test_a_mistake_reads_alike_in_a_file_on_the_command_line_and_in_python(key, bad, allowed, written):
    path = written(f"{key}: {bad}\n")
    errors = []
    for place, attempt in (
        (f"{path}: {key}", lambda: config.read(path)),
        (key, lambda: parsed(option(key), bad)),
        (key, lambda: config.make({**VALUES, key: bad})),
    ):
        with pytest.raises(InvalidValueError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{place}: '{bad}'")
        errors.append(str(caught.value).removeprefix(place))
    assert errors[0] == errors[1] == errors[2]
    assert errors[0].endswith(f"(allowed: {allowed})")


@pytest.mark.parametrize(("key", "bad", "near"), [("schedule", "cosin", "cosine"), ("dtype", "fp16", "float16")])
def test_the_nearest_choice_is_named(key, bad, near):
    with pytest.raises(InvalidValueError, match=f"'{bad}'; nearest: {near}"):
        parsed(option(key), bad)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("epochs", True),
        ("epochs", 2.5),
        ("learning_rate", float("inf")),
        ("milestones", 150.5),
        ("momentum", False),
        ("mixup", float("nan")),
        ("dtype", 16),
        ("seed", "1,2"),
    ],
)
def test_wrong_types_are_refused_in_python_too(key, bad):
    with pytest.raises(InvalidValueError, match=rf"^{key}: '{re.escape(str(bad))}'.* \(allowed: "):
        config.make({**VALUES, key: bad})


@pytest.mark.parametrize(
    ("images", "pretrained", "epochs"),
    [(100, True, 100), (1000, True, 20), (4000, True, 10), (10**6, True, 10), (1000, False, 100), (4000, False, 25)],
)
def test_epochs_auto_is_by_the_number_of_images(images, pretrained, epochs):
    made = config.make({**VALUES, "epochs": "auto"})
    assert with_epochs(made, images, pretrained).epochs == epochs
    assert with_epochs(config.make(VALUES), images, pretrained).epochs == 320


def test_a_warm_up_that_auto_epochs_leave_no_room_for_is_named():
    made = config.make({**VALUES, "epochs": "auto", "warmup_epochs": 10})
    with pytest.raises(InvalidValueError, match=r"warmup_epochs: '10' \(allowed: a number below the 10 epochs"):
        with_epochs(made, 10**6, pretrained=True)


def test_images_of_another_size_are_a_folder_s_alone():
    with pytest.raises(InvalidValueError, match=r"image_size is 64 \(allowed: 32, as cifar10 has"):
        config.make({**VALUES, "image_size": 64})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "pyd-cat-56-0.5"}, "unknown model 'pyd-cat-56-0.5'; nearest: pyd-concat-56-0.5"),
        ({"dataset": "cifar11"}, "unknown data set 'cifar11'; nearest: cifar10"),
        ({"warmup_epochs": 320}, "warmup_epochs: '320' (allowed: a number below the 320 epochs of the run)"),
        ({"cutout": 32}, "cutout: '32' (allowed: a whole number below the 32 pixels of an image)"),
        ({"epoch": 3}, "unknown key 'epoch'; nearest: epochs"),
        ({"model": 5}, "unknown model '5'"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, words):
    with pytest.raises(InvalidValueError) as caught:
        config.make({**VALUES, **values})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"milestones": ()},
        {"epochs": 10},  # milestones that are never reached, as in a short trial of a long recipe
        {"warmup_epochs": 319.5},
    ],
)
def test_values_on_the_near_side_of_a_limit_go_together(values):
    assert config.make({**VALUES, **values}) == dataclasses.replace(config.make(VALUES), **values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning-rate: 0.1\n", "recipe.yaml: unknown key 'learning-rate'; nearest: learning_rate"),
        (
            "epochs: 3\nseed: 1\nepochs: 4\n",
            "recipe.yaml: no valid YAML: duplicate key 'epochs' in line 3, column 1",
        ),
        (
            "epochs: 3\nmilestones: [150, 225\n",
            "no valid YAML: while parsing a flow sequence in line 2, column 13 expected ',' or ']', but got ",
        ),
        ("epochs: 3: 4\n", "no valid YAML: mapping values are not allowed here in line 1, column 10"),
        ("[a, b]: 3\n", "no valid YAML: while constructing a mapping found unhashable key in line 1, column 1"),
        (
            "epochs: 3\n---\nepochs: 4\n",
            "no valid YAML: expected a single document in the stream in line 1, column 1 but found another",
        ),
        (b"model: \xff\n", "no valid YAML: unacceptable character #x00ff: invalid start byte"),
        (b"\x00\x01\x02", "no valid YAML: "),
        ("", "is not a configuration (allowed: one 'key: value' per line"),
        ("- epochs\n", "is not a configuration"),
        ("epochs=3\n", "is not a configuration"),
        ("epochs: [3, 4]\n", "epochs: '3,4' (allowed: a whole number from 1 to 2147483647, or auto)"),
        ("epochs:\n", "epochs: '' (allowed: a whole number from 1 to 2147483647, or auto)"),
        ("milestones: {150: 0.1}\n", "(allowed: rising whole numbers"),
        ("milestones: [225, 150]\n", "milestones: '225,150' (allowed: rising"),
        ("seed: !!python/object/apply:os.getpid []\n", "seed: '' (allowed: a whole number from 0 to 2147483647)"),
    ],
)
def test_a_bad_file_is_named_on_one_line(content, words, written):
    path = written(content)
    with pytest.raises(UserError) as caught:
        config.read(path)
    assert isinstance(caught.value, (BadFileError, InvalidValueError))
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"no such file: .*configs/cifr\.yaml; nearest: cifar\.yaml"):
        config.read(ROOT / "configs" / "cifr.yaml")
    with pytest.raises(MissingFileError, match=r"no such file: /nowhere/at/all\.yaml$"):
        config.read("/nowhere/at/all.yaml")
    with pytest.raises(UnusableError, match=r"cannot read .*: Is a directory"):
        config.read(tmp_path)


def test_each_option_and_its_help_is_one_line_of_100_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = argparse.ArgumentParser(prog="train.py")
    config.add_options(parser)
    lines = parser.format_help().split("recipe:\n")[1].strip().splitlines()
    assert "config file has the defaults" in lines[0]
    assert len(lines[2:]) == len(config.FIELDS)
    for line, (key, field) in zip(lines[2:], config.FIELDS.items()):
        assert option(key) in line
        assert line.endswith(f"  {field.metadata['help']}")


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.15), (3, 0.45), (4, 3)])
def test_a_recipe_s_warm_up_that_has_no_room_keeps_its_share_of_the_epochs_which_is_said(epochs, warmup):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = configure(parsed("-m", MODEL, "-d", "digits", "--mixup", "0", "--epochs", str(epochs)))
    assert (made.epochs, made.warmup_epochs) == (epochs, pytest.approx(warmup))
    said = f"--epochs {epochs} is too short for warmup_epochs 3 of the recipe's 20 epochs: shortened to {warmup}"
    assert [str(warning.message) for warning in caught] == ([said] if warmup < 3 else [])


def test_training_imports_no_engine():
    names = ("config", "history", "checkpoint", "trainer", "loop")
    check = f"import sys; from pydmobilenet.training import {', '.join(names)}; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
    for path in (ROOT / "pydmobilenet" / "training").glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(import|from) ", line)]
        assert not [line for line in imports if "mxnet" in line], path


def test_aliases_and_long_recipes_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("milestones: &a [1, 2]\nepochs: *a\n")
    with pytest.raises(BadFileError, match="aliases are not allowed"):
        config.read(path)
    path.write_text(f"# {'x' * (1 << 16)}\nepochs: 3\n")
    with pytest.raises(BadFileError, match="more than 65,536 bytes"):
        config.read(path)
