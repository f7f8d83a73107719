"""Names, and the published tables."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from pydmobilenet import catalog, list_models
from pydmobilenet.errors import InvalidValueError


def test_the_tables_have_all_rows():
    datasets = [record.dataset for record in catalog.RECORDS]
    assert {name: datasets.count(name) for name in set(datasets)} == {
        "cifar10": 22,
        "cifar100-coarse": 22,
        "imagenet32": 6,
    }
    assert sum(record.file is not None for record in catalog.RECORDS) == 47


@pytest.mark.parametrize("record", catalog.RECORDS, ids=lambda record: f"{record.model}@{record.dataset}")
def test_every_row_is_whole(record):
    assert 0 < record.top1_error < 100
    assert catalog.parse_name(record.model).name == record.model
    assert record.depth == int(record.model.split("-")[-2])
    assert record.labels in ("10 classes", "20 superclasses", "1,000 classes")
    if record.file:
        assert len(record.file.git_blob_sha1) == 40
        assert len(record.file.sha256) == (0 if record.dataset == "imagenet32" else 64)
    else:
        assert record.model.startswith("wrn")


def test_figures_and_files_are_those_of_the_reference(shared):
    with open(shared / "reference" / "published-cifar.csv") as file:
        for row in csv.DictReader(file):
            for dataset in ("cifar10", "cifar100"):
                record = catalog.find(row["model"], dataset.replace("100", "100-coarse"))
                assert record.top1_error == float(row[f"{dataset}_error"])
                assert record.flops_m == float(row["flops_m"])
            assert catalog.find(row["model"], "cifar10").params_m == float(row["params_m"])
    with open(shared / "reference" / "published-imagenet32.csv") as file:
        for row in csv.DictReader(file):
            record = catalog.find(row["model"], "imagenet32")
            assert (record.params_m, record.top1_error, record.top5_error) == tuple(
                float(row[key]) for key in ("params_m", "top1_error", "top5_error")
            )
    with open(shared / "reference" / "upstream-weights.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 47
    for row in rows:
        checkpoint = catalog.find(row["model"], row["dataset"]).file
        assert (checkpoint.path, str(checkpoint.bytes or ""), checkpoint.sha256, checkpoint.git_blob_sha1) == (
            row["path"],
            row["bytes"],
            row["sha256"],
            row["git_blob_sha1"],
        )


def test_exact_counts_are_those_of_the_authors_graphs(shared):
    with open(shared / "reference" / "exact-counts.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    for row in rows:
        record = catalog.find(row["model"], row["dataset"].replace("cifar100", "cifar100-coarse"))
        assert record.exact == (int(row["parameters"]), int(row["multiply_adds"]))


@pytest.mark.parametrize(
    ("name", "family", "depth", "multiplier"),
    [
        ("resnet-29-0.5", "resnet", 29, 0.5),
        ("pyd-add-83-0.6", "pyd-add", 83, 0.6),
        ("pyd-concat-11-2", "pyd-concat", 11, 2),
        ("mobilenet-29-0.03125", "mobilenet", 29, 1 / 32),
        ("wrn-40-4", "wrn", 40, 4),
    ],
)
def test_a_name_of_the_form_is_valid_published_or_not(name, family, depth, multiplier):
    assert catalog.parse_name(name) == catalog.Architecture(family, depth, multiplier)
    assert catalog.parse_name(name).name == name


def test_a_network_has_one_name():
    assert catalog.parse_name("pyd-add-29-1.0").name == "pyd-add-29-1"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pyd-add-57-0.5", "pyd-add-56-0.5"),
        ("pyd-add-2-0.5", "pyd-add-11-0.5"),
        ("pyd-add-29-0.01", "pyd-add-29-0.03125"),
        ("pyd-cat-56-0.5", "pyd-concat-56-0.5"),
        ("PydMobileNet-Add-29-0.25", "pyd-add-29-0.25"),
        ("PYD-CONCAT-56-0.5", "pyd-concat-56-0.5"),
        ("resnet-29", "resnet-29-0.5"),
        ("wrn-28-1.5", "wrn-28-2"),
        ("wrn-29-2", "wrn-28-2"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{name}'.*nearest:.*{nearest}"):
        catalog.parse_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "x", "../resnet-29-0.5", "resnet-29-0.5\n", "resnet-29-1e3", "resnet-029-0.5", f"resnet-29-{'9' * 400}"],
)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InvalidValueError, match="allowed"):
        catalog.parse_name(name)


def test_wildcards():
    assert list_models("pyd-*-56-*") == [
        *(f"pyd-add-56-{m}" for m in ("0.25", "0.5", "0.75", "1")),
        *(f"pyd-concat-56-{m}" for m in ("0.25", "0.5", "0.75")),
    ]
    assert len(list_models()) == 25
    assert list_models("*", "imagenet32")[:3] == ["wrn-28-2", "wrn-28-5", "wrn-28-10"]
    assert list_models("vgg*") == []


def test_an_unknown_data_set_is_no_empty_list():
    with pytest.raises(InvalidValueError, match="nearest: cifar10"):
        list_models(dataset="cifar11")


def test_rows_are_selected_by_model_data_set_and_depth():
    assert len(catalog.select()) == 50
    assert [record.model for record in catalog.select(["*-0.25"], ["cifar10"], [29])] == [
        "pyd-add-29-0.25",
        "pyd-concat-29-0.25",
    ]


def test_rows_are_selected_among_those_given():
    """Not among the published ones alone: a run may be of any network."""
    own = [replace(catalog.RECORDS[0], model=name, path=Path("run")) for name in ("pyd-add-11-0.125", "wrn-10-1")]
    assert catalog.select(["pyd-*"], records=own) == own[:1]
    assert catalog.select(["pyd-add-11-0.125"], depths=[11], records=own) == own[:1]
    assert catalog.select(depths=[10], records=own) == own[1:]
    with pytest.raises(
        InvalidValueError, match=r"^unknown model 'pyd-add-29-1'.* \(allowed: pyd-add-11-0.125, wrn-10-1\)"
    ):
        catalog.select(["pyd-add-29-1"], records=own)
    with pytest.raises(InvalidValueError, match=r"^unknown depth '29'.* \(allowed: 10, 11\)"):
        catalog.select(depths=[29], records=own)
    with pytest.raises(InvalidValueError, match="unknown model 'pyd-ad-29-1'; nearest"):
        catalog.select(["pyd-ad-29-1"], records=own)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"models": ["vgg-*"]}, "published model 'vgg-\\*'"),
        ({"models": ["pyd-add-83-0.6"]}, "published model 'pyd-add-83-0.6'"),
        ({"models": ["pyd-add-30-0.5"]}, "nearest: pyd-add-29-0.5"),
        ({"datasets": ["cifar-10"]}, "nearest: cifar10"),
        ({"datasets": ["cifar100"]}, "superclasses.*nearest: cifar100-coarse"),
        ({"depths": [57]}, "depth '57'.*56"),
    ],
)
def test_a_selection_of_nothing_is_refused(arguments, words):
    with pytest.raises(InvalidValueError, match=words):
        catalog.select(**arguments)
