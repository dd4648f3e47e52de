"""Feature tables, labels and settings in everyday forms: read, or refused in one line."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from diffusers_ext import LADSClassifier, VMFMixtureClassifier
from diffusers_ext.data.feature_arrays import as_matrix
from diffusers_ext.errors import InputError
from diffusers_ext.mixtures.inputs import as_labels
from diffusers_ext.preferences.select import unit_rows

ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
READ = {
    "data frame": pd.DataFrame(ROWS, columns=list("abcd")),
    "nullable data frame": pd.DataFrame(ROWS).convert_dtypes(),
    "column of arrays": pd.Series(list(ROWS)),
    "list of tensors": list(torch.tensor(ROWS)),
    "list of lists": ROWS.tolist(),
    "reversed": np.ascontiguousarray(ROWS[::-1])[::-1],
    "reversed columns": np.ascontiguousarray(ROWS[:, ::-1])[:, ::-1],
    "big-endian": ROWS.astype(">f4"),
    "Fortran order": np.asfortranarray(ROWS),
    "objects": ROWS.astype(object),
    "array of arrays": np.array([*map(np.array, ROWS), None], dtype=object)[:-1],
    "half precision by rows": [row.double() for row in torch.tensor(ROWS)],
    "read-only": np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape),
    "no mask": np.ma.array(ROWS),
    "needs a gradient": torch.tensor(ROWS, requires_grad=True),
}
REFUSED = {
    "None": (None, "NoneType is no table"),
    "text": ("dog", "str is no table"),
    "dictionary": ({"a": ROWS}, "dict is no table"),
    "number": (3.0, "float is no table"),
    "complex": (ROWS.astype(complex), "complex numbers"),
    "complex tensor": (torch.tensor(ROWS).cfloat(), "complex numbers"),
    "sparse": (scipy.sparse.csr_matrix(ROWS), r"toarray\(\)"),
    "sparse tensor": (torch.tensor(ROWS).to_sparse(), r"to_dense\(\)"),
    "dates": (ROWS.astype("datetime64[s]"), "datetime64"),
    "text array": (ROWS.astype(str), "not numbers"),
    "ragged": ([[1.0, 2.0], [3.0]], "row 1: shape"),
    "words in a frame": (pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]}), "row 0, column 'name': 'x'"),
    "masked": (np.ma.array(ROWS, mask=ROWS > 1), "values are masked"),
    "one row": (ROWS[0], r"features\[None\]"),
    "pictures": (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
}


@pytest.mark.parametrize("form", READ)
def test_everyday_tables_are_read(form):
    found = as_matrix(READ[form])
    assert found.dtype == torch.float32 and not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), ROWS)


@pytest.mark.parametrize("form", READ)
def test_every_entrance_reads_them(form):
    labels = np.arange(12) % 3
    learner = VMFMixtureClassifier(4).partial_fit(READ[form], labels)
    plain = VMFMixtureClassifier(4).partial_fit(ROWS, labels)
    assert (learner.predict(READ[form]) == plain.predict(ROWS)).all()
    lads = LADSClassifier(4, ["a", "b"], {"source": ["a photo of a {}"], "targets": {"s": ["a sketch of a {}"]}}).eval()
    assert lads.predict(READ[form]).labels == lads.predict(torch.tensor(ROWS)).labels
    assert torch.equal(unit_rows(READ[form]), unit_rows(ROWS))


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_table_is_refused_in_one_line(form):
    given, message = REFUSED[form]
    with pytest.raises(InputError, match=message) as error:
        as_matrix(given)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        VMFMixtureClassifier(4).partial_fit(given, [0])


def test_a_grey_picture_is_no_table_of_embeddings():
    lads = LADSClassifier(4, ["a", "b"], {"source": ["a photo of a {}"], "targets": {"s": ["a sketch of a {}"]}}).eval()
    for grey in (np.zeros((7, 4), np.uint8), torch.zeros(7, 4, dtype=torch.bool)):
        with pytest.raises(InputError, match="grey picture"):
            lads.predict(grey)
    for nothing in (None, {"a": 1}):
        with pytest.raises(InputError, match="give pictures"):
            lads.predict(nothing)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (pd.Series(["a", "b"]), ["a", "b"]),
        (pd.DataFrame({"label": ["a", "b"]}), ["a", "b"]),
        (pd.Categorical(["a", "b"]), ["a", "b"]),
        (np.array([[1], [2]]), [1, 2]),
        ([torch.tensor(1), torch.tensor(2)], [1, 2]),
        ((name for name in "ab"), ["a", "b"]),
    ],
)
def test_labels_in_everyday_forms_are_read(labels, wanted):
    assert as_labels(labels) == wanted


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels: 'None'"),
        ("dog", "one label per row"),
        ({"a", "b"}, "one label per row"),
        (3, "labels: 3"),
        ([1.0, float("inf")], "row 1: inf"),
        (np.array([1.0, np.nan]), "row 1: nan"),
        (np.eye(3), r"argmax\(1\)"),
        ([["a"], ["b"]], "row 0: .*not a list"),
        ([b"a"], "row 0: b'a'"),
        ([1, None], "row 1: None"),
        (np.array(["2020-01-01"], "datetime64[s]"), "row 0"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        as_labels(labels)


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 8.0},
        {"dim": "8"},
        {"dim": True},
        {"dim": 8, "memory": 1.5},
        {"dim": 8, "seed": None},
        {"dim": 8, "alpha": float("nan")},
        {"dim": 8, "shrinkage": -1.0},
        {"dim": 8, "standardise": "yes"},
        {"dim": 8, "projections": 0},
        {"dim": 8, "head": ["pooled"]},
    ],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(InputError, match=list(settings)[-1]):
        VMFMixtureClassifier(**settings)


def test_numpy_settings_can_be_saved(tmp_path):
    learner = VMFMixtureClassifier(np.int64(4), alpha=np.float32(2.0)).partial_fit(ROWS, [0, 1, 2] * 4)
    learner.save_pretrained(tmp_path)
    assert VMFMixtureClassifier.from_pretrained(tmp_path).config.dim == 4


def test_calls_with_the_wrong_things_are_named():
    labels = np.arange(12) % 3
    learner = VMFMixtureClassifier(4).partial_fit(ROWS, labels)
    assert learner.score(ROWS, labels) == (learner.predict(ROWS) == labels).mean()
    with pytest.raises(InputError, match="12 rows of features and 3 labels"):
        learner.score(ROWS, labels[:3])
    with pytest.raises(InputError, match="type str"):
        learner.score(ROWS, ["a"] * 12)
    for other in ([learner, learner], learner, None):
        with pytest.raises(InputError, match="merge takes one other"):
            learner.merge(other)
    with pytest.raises(InputError, match=r"shape \(5, 0\)"):
        learner.partial_fit(np.empty((5, 0)), labels[:5])
    assert len(learner.partial_fit([], []).session_log_) == 1  # an empty session changes nothing


DOMAINS = {"source": ["a {}"], "targets": {"drawn": ["a drawn {}"]}}


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32, np.float64])
def test_a_grey_picture_as_wide_as_embeddings_is_refused(dtype):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 8))
    grey = pixels.astype(dtype) if np.dtype(dtype).kind in "iu" else (pixels / 255).astype(dtype)
    with pytest.raises(InputError, match="grey picture"):
        LADSClassifier(8, ["cat", "dog"], DOMAINS).predict(grey)


@pytest.mark.parametrize("paths", [pd.Series(["gone.png"]), np.array(["gone.png"]), ["gone.png"]])
def test_columns_of_paths_are_paths(paths):
    made, asked = LADSClassifier(8, ["cat", "dog"], DOMAINS), []

    class Recorder:
        name = "recorder"

        def embed_images(self, images, batch_size):
            asked.extend(images)
            return torch.ones(len(images), 8)

    made._backbone = Recorder()
    assert len(made.predict(paths).labels) == 1 and asked == ["gone.png"]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_pictures_at_a_time_are_a_number(batch_size):
    with pytest.raises(InputError, match="batch_size"):
        LADSClassifier(8, ["cat", "dog"], DOMAINS).predict(["a.png", "b.png"], batch_size=batch_size)


@pytest.mark.parametrize("dim, classes", [(-1, ["a", "b"]), ("8", ["a", "b"]), (8, []), (8, "ab"), (8, ["a", "a"])])
def test_what_a_classifier_cannot_be_made_of_is_named(dim, classes):
    with pytest.raises(InputError, match=r"(dim|classes) must"):
        LADSClassifier(dim, classes, DOMAINS)


@pytest.mark.parametrize("images", [5, 0.5, None, {"a": 1}])
def test_what_is_no_picture_is_refused(images):
    with pytest.raises(InputError):
        LADSClassifier(8, ["cat", "dog"], DOMAINS).predict(images)


def test_numbers_that_are_none_are_named():
    with pytest.raises(InputError, match="meta"):
        as_matrix(torch.empty(2, 8, device="meta"))
    with pytest.raises(InputError, match="row 0"):
        as_matrix([[10**400] * 8])
    assert as_matrix(memoryview(np.ones((2, 8), np.float32))).shape == (2, 8)


@pytest.mark.parametrize("batches", [None, "ab", {"x": 1}, [np.ones((3, 8))], (np.ones((3, 8)), [0, 1, 0]), [(3, [1])]])
def test_batches_of_other_forms_are_named(batches):
    with pytest.raises(InputError, match="batch"):
        VMFMixtureClassifier(8).partial_fit_batches(batches)


def test_a_classifier_of_another_class_is_not_loaded(tmp_path):
    LADSClassifier(8, ["cat", "dog"], DOMAINS).save_pretrained(tmp_path / "lads")
    VMFMixtureClassifier(8).save_pretrained(tmp_path / "mixture")
    with pytest.raises(InputError, match="a LADSClassifier, not a VMFMixtureClassifier"):
        VMFMixtureClassifier.from_pretrained(tmp_path / "lads")
    with pytest.raises(InputError, match="a VMFMixtureClassifier, not a LADSClassifier"):
        LADSClassifier.from_pretrained(tmp_path / "mixture")


@pytest.mark.parametrize("change", [{"classes": ["cat"]}, {"dim": 9}, {"domains": {}}, {"classes": None}])
def test_a_configuration_that_its_weights_do_not_fit_is_refused(tmp_path, change):
    LADSClassifier(8, ["cat", "dog"], DOMAINS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError):
        LADSClassifier.from_pretrained(tmp_path)
