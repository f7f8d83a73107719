"""The web page of the results: self-contained, well-formed, escaped, with the right confusions and mistakes."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pydmobilenet import catalog
from pydmobilenet.catalog import Record
from pydmobilenet.data import Dataset, Task, get_task
from pydmobilenet.metrics import NO_CLASS, Answers, Score, confusion, evaluate, most_likely
from pydmobilenet.reporting import html
from pydmobilenet.reporting.classes import mistakes
from pydmobilenet.validation import Result

VOID = {"meta", "br", "wbr"}


class Page(HTMLParser):
    """A page's elements with attributes and text; `errors` are the unmatched tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.errors, self.elements = [], [], []
        self.feed(text)
        self.close()
        self.errors += [tag for tag, _ in self.open]

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append((tag, element))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.errors.append(f"/{tag}")
        else:
            self.open.pop()

    def handle_data(self, text):
        for _, element in self.open:
            element[2].append(text)

    def of(self, tag, kind=None):
        """Return the text of each element of a tag, and of a class if given."""
        return [
            "".join(text)
            for name, attributes, text in self.elements
            if name == tag and kind in (None, attributes.get("class"))
        ]

    def values(self, name):
        return [attributes[name] for _, attributes, _ in self.elements if name in attributes]


def images_of(task, number, official=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, 3, 32, 32), np.uint8)
    labels = rng.integers(0, len(task.classes) or task.outputs, number)
    return Dataset(task, "test", images, labels, official, "here")


def answered(record, dataset, seed=1, error=0.1):
    """Make a result of random predictions, a fraction of about `error` wrong."""
    rng = np.random.default_rng(seed)
    classes = np.where(rng.random(len(dataset)) < error, rng.integers(0, 10, len(dataset)), dataset.labels)
    answers = Answers(classes.astype(np.uint16), rng.random(len(dataset), np.float32))
    counts = Score(0.0, int((classes != dataset.labels).sum()), len(dataset))
    return Result(record, record.exact, counts, complete=True, answers=answers)


def page_of(*validated):
    sections = [html.Section(dataset, results, number) for number, (dataset, results) in enumerate(validated)]
    return html.page(sections, [result for _, results in validated for result in results])


@pytest.fixture(scope="module")
def cifar():
    return images_of(get_task("cifar10"), 200)


@pytest.fixture(scope="module")
def text(cifar):
    records = catalog.select(["*-29-*"], ["cifar10"])
    rows = [answered(record, cifar, number) for number, record in enumerate(records)]
    rows[1] = Result(records[1], records[1].exact, reason="the file <a> & more is damaged")
    coarse = catalog.select(["*-29-*"], ["cifar100-coarse"])
    return page_of((cifar, rows), (None, [Result(record, record.exact, reason="no images") for record in coarse]))


def test_the_page_is_well_formed(text):
    page = Page(text)
    assert page.errors == []
    anchors = page.values("id")
    assert len(set(anchors)) == len(anchors)
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(anchors)


def test_the_page_is_self_contained(text):
    page = Page(text)
    assert {tag for tag, *_ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "img", "base"})
    assert not page.values("src")
    for tag, attributes, _ in page.elements:
        assert tag == "a" or attributes.get("href", "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_all_data_is_escaped(cifar, tmp_path):
    evil = '<script>alert("1")</script>&amp;'
    task = Task(f"folder:{evil}", evil, (evil, "b'\"<", *"cdefghij"), 10, (0, 0, 0), (1, 1, 1))
    dataset = replace(cifar, task=task, source=evil)
    file = tmp_path / evil.replace("/", "") / "<i>.params"
    record = Record("resnet-29-0.5", "digits", 5.0, note=evil, path=file)
    page = Page(page_of((dataset, [answered(record, dataset), Result(record, reason=evil)])))
    assert page.errors == []
    assert not page.of("script")
    assert not page.of("i")
    assert [text for text in page.of("span") if text == evil]  # as a heading of the matrix
    assert [text for text in page.of("p") if text == f"[1] {evil}"]
    assert [text for text in page.of("td") if "<i>.params" in text]


def test_a_folder_name_beyond_utf8_does_not_stop_the_report(cifar):
    task = replace(cifar.task, classes=(b"caf\xe9".decode("utf-8", "surrogateescape"), *"bcdefghij"))
    text = page_of((replace(cifar, task=task), [answered(catalog.find("resnet-29-0.5", "cifar10"), cifar)]))
    assert r"caf\xe9" in text
    assert text.encode()


def test_the_table_equals_the_markdown(text, cifar):
    page = Page(text)
    cells = page.of("td")
    assert "0.103904" in cells
    assert "not evaluated [1]" in cells
    assert "[1] the file <a> & more is damaged" in page.of("p")
    assert "20 superclasses, as in the published CIFAR-100 column" in text
    assert any("Measured on the official test set" in note for note in page.of("p"))
    assert page.of("h2") == ["CIFAR-10", "CIFAR-100, 20 superclasses"]
    other = page_of((replace(cifar, official=False), [answered(catalog.find("resnet-29-0.5", "cifar10"), cifar)]))
    assert "These are not the official test images" in Page(other).of("strong")


def test_a_cell_names_its_column(text):
    cells = [attributes for tag, attributes, _ in Page(text).elements if tag == "td" and "data-column" in attributes]
    assert [cell["data-column"] for cell in cells[:9]] == [
        *("params, M", "params, published", "mult-adds, M", "mult-adds, published"),
        *("error, %", "error, published", "difference", "verdict", "params, M"),
    ]


def test_the_summary_counts_the_verdicts(text):
    summary = Page(text).of("ul", "summary")[0]
    assert "12 not evaluated" in summary


def test_confusions_are_counted_as_one_by_one():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 20, 3000), rng.integers(0, 25, 3000).astype(np.uint16)
    answers[:10] = NO_CLASS
    expected = np.zeros((20, 21), int)
    np.add.at(expected, (labels, np.minimum(answers.astype(int), 20)), 1)
    np.testing.assert_array_equal(confusion(labels, answers, 20), expected)


def test_the_matrix_shows_each_count(cifar):
    result = answered(catalog.find("resnet-29-0.5", "cifar10"), cifar)
    page = Page(page_of((cifar, [result])))
    cells = [
        (attributes["class"], "".join(text))
        for tag, attributes, text in page.elements
        if tag == "td" and re.fullmatch(r"(right|wrong)\d", attributes.get("class", ""))
    ]
    shown = np.array([int(text) for _, text in cells]).reshape(10, 10)
    np.testing.assert_array_equal(shown, confusion(cifar.labels, result.answers.classes, 10)[:, :10])
    assert shown.sum() - np.trace(shown) == result.counts.wrong
    assert all((kind[-1] == "0") == (text == "0") for kind, text in cells)


def test_predictions_of_no_class_have_a_column():
    dataset = images_of(get_task("cifar10"), 60)
    result = answered(catalog.find("resnet-29-0.5", "cifar10"), dataset)
    assert "no class" not in page_of((dataset, [result]))
    result.answers.classes[:2] = 57, NO_CLASS
    result.answers.confidences[:2] = 1, 0
    text = page_of((dataset, [result]))
    assert "no class" in text
    assert "predicted <b>57</b>, 100.0&nbsp;%<br>image 0" in text


def test_of_a_thousand_classes_the_most_frequent_confusions_are_listed():
    dataset = images_of(get_task("imagenet32"), 500)
    record = catalog.find("pyd-concat-56-0.5", "imagenet32")
    result = answered(record, dataset, error=0)
    dataset.labels[:9], result.answers.classes[:9] = 7, 123
    dataset.labels[9:12], result.answers.classes[9:12] = 5, 999
    page = Page(page_of((dataset, [replace(result, counts=Score(0.0, 12, 500))])))
    assert page.errors == []
    assert not page.of("table", "matrix")
    of_7, of_5 = (dataset.labels == 7).sum(), (dataset.labels == 5).sum()
    (listed,) = page.of("table", "confusions")
    names = dataset.task.classes
    assert f"{names[7]}{names[123]}9 of {of_7}\n{names[5]}{names[999]}3 of {of_5}\n" in listed


def test_the_most_confident_mistakes_are_shown_first(cifar):
    answers = answered(catalog.RECORDS[0], cifar, error=0.9).answers
    found = mistakes(cifar, answers)
    wrong = [place for place in range(len(cifar)) if answers.classes[place] != cifar.labels[place]]
    assert [row.image for row in found] == sorted(wrong, key=lambda place: -answers.confidences[place])[:12]
    perfect = answers._replace(classes=cifar.labels.astype(np.uint16))
    assert len(mistakes(cifar, perfect)) == 0


def test_a_network_without_mistakes_has_its_matrix_and_no_pictures(cifar):
    page = Page(page_of((cifar, [answered(catalog.find("resnet-29-0.5", "cifar10"), cifar, error=0)])))
    assert page.errors == []
    assert page.of("table", "matrix")
    assert not page.of("image")
    assert not page.of("ul", "mistakes")


def test_a_picture_is_the_image_itself_and_embedded_once(cifar):
    record = catalog.find("resnet-29-0.5", "cifar10")
    one = answered(record, cifar)
    page = Page(page_of((cifar, [one, one, one])))
    pictures = [attributes for tag, attributes, _ in page.elements if tag == "image"]
    places = [row.image for row in mistakes(cifar, one.answers)]
    assert len(pictures) == len(places)
    uses = [attributes["href"] for tag, attributes, _ in page.elements if tag == "use" and "href" in attributes]
    assert uses == [f"#s0i{place}" for place in places] * 3
    for picture in pictures:
        png = base64.b64decode(picture["href"].partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, cifar.images[int(picture["id"].partition("i")[2])])


def test_pictures_and_plots_have_labels_for_screen_readers(text):
    page = Page(text)
    drawn = [attributes for tag, attributes, _ in page.elements if tag == "svg"]
    assert all(svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"]) for svg in drawn)
    assert len(page.of("caption")) == len(page.of("table"))
    assert re.search(r'aria-label="image \d+, \w+"', text)


def test_both_plots_show_the_measured_and_the_published_points(text):
    titles = Page(text).of("title")[1:]
    assert "resnet-29-0.5: 6.97 % published, 0.221 M" in titles
    assert "resnet-29-0.5: 6.97 % published, 29 M" in titles
    assert len([title for title in titles if "measured" in title]) == 2 * 10
    assert len([title for title in titles if "published" in title]) == 2 * (11 + 11)


def test_results_of_no_published_table_have_no_plot(cifar, tmp_path):
    record = Record("resnet-29-0.5", "digits", 5.0, path=tmp_path / "best.params")
    assert "<h3>Error and cost" not in page_of((cifar, [answered(record, cifar)]))


def test_the_page_of_the_whole_table_stays_small():
    """Limit the size for 22 networks, 10,000 images and no common mistake."""
    dataset = images_of(get_task("cifar10"), 10_000)
    records = catalog.select(["*"], ["cifar10"])
    text = page_of((dataset, [answered(record, dataset, number) for number, record in enumerate(records)]))
    assert len(text) < 2_500_000


def test_answers_are_the_most_likely_class_and_its_softmax():
    rng = np.random.default_rng(0)
    logits = 30 * rng.standard_normal((50, 10))
    logits[3, 4], logits[5, 6] = np.nan, np.inf
    finite = np.isfinite(logits).all(axis=1)
    answers = most_likely(logits)
    assert (answers.classes.dtype, answers.confidences.dtype) == (np.uint16, np.float32)
    np.testing.assert_array_equal(answers.classes[finite], logits[finite].argmax(axis=1))
    np.testing.assert_array_equal(answers.classes[~finite], NO_CLASS)
    shares = np.exp(logits[finite]) / np.exp(logits[finite]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers.confidences[finite], shares.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(answers.confidences[~finite], 0)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_kept_in_the_order_of_images(cifar, batch_size):
    def predict(images):
        return np.eye(10)[np.abs(images[:, 0, 0, 0] * 1000).astype(int) % 10]

    kept = Answers.empty(30)
    counts = evaluate(predict, cifar.head(30), batch_size, answers=kept)
    np.testing.assert_array_equal(kept.classes, predict(cifar.normalised(0, 30)).argmax(axis=1))
    assert counts.wrong == (kept.classes != cifar.labels[:30]).sum()
