"""Feature tables, labels and settings in everyday forms: read, or refused in one line."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from diffusers_ext import LADSClassifier, VMFMixtureClassifier
from diffusers_ext.errors import InputError
from diffusers_ext.feature_arrays import as_matrix
from diffusers_ext.mixture.inputs import as_labels
from diffusers_ext.prompts import unit_rows

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
