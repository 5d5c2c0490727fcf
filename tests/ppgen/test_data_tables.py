import functools
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppgen.data import DataError, Table, arguments_for, load, read_table

relaxed = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def schools(tmp_path):
    path = tmp_path / "schools.csv"
    path.write_text("y,sigma,town\n28,15,Ulm\n8.5,10,Bonn\n-3,16,Ulm\n")
    return path


def test_numbers_become_floats_and_texts_codes_with_their_categories(schools):
    table = read_table(schools)
    assert list(table) == ["y", "sigma", "town"]
    assert table["y"].tolist() == [28, 8.5, -3]
    assert table["y"].dtype == torch.get_default_dtype()
    assert table["town"].tolist() == [1, 0, 1]
    assert table.categories == {"town": ("Bonn", "Ulm")}


@pytest.mark.parametrize(
    "text",
    [
        "a;b\n1,5;2\n3;4\n",
        "a\tb\n1\t2\n3\t4\n",
        "\ufeffa,b\r\n1,2\r\n3,4\r\n",
        'a,b\n"1","2"\n3,4\n',
    ],
)
def test_usual_dialects_are_read(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert list(read_table(path)) == ["a", "b"]


def test_line_numbers_count_what_an_editor_shows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"one\ntwo",2\nx,\n')
    with pytest.raises(DataError, match="row 4, column b"):
        read_table(path)
    path.write_text("a,b\nx,2\n,3\n")
    with pytest.raises(DataError, match="row 3, column a: missing value"):
        read_table(path)


def test_a_table_needs_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match="row 1: the first line holds numbers"):
        read_table(path)
    assert load(path).x.tolist() == [[1, 2], [3, 4]]
    assert load(path).columns is None


def test_a_label_column_is_set_apart(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,Label,b\n1,cat,2\n3,ape,5\n")
    data = load(path)
    assert data.columns == ("a", "b")
    assert data.labels.tolist() == [1, 0]
    assert data.x.tolist() == [[1, 2], [3, 5]]


def test_constant_columns_are_warned_of(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,3\n")
    with pytest.warns(UserWarning, match="constant column a"):
        load(path)


@relaxed
@given(
    st.lists(
        st.tuples(st.floats(-1e17, 1e17), st.integers(-(2**50), 2**50)), min_size=1, max_size=20
    )
)
def test_numbers_come_back_to_the_last_bit(tmp_path, rows):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{a!r},{b}\n" for a, b in rows))
    table = read_table(path)
    assert table.matrix().tolist() == [[a, float(b)] for a, b in rows]


@relaxed
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_a_table_or_a_data_error(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    try:
        table = read_table(path)
    except DataError:
        return
    assert len({len(column) for column in table.values()}) == 1


@pytest.mark.slow
def test_large_tables_are_read_at_more_than_a_million_numbers_a_second(tmp_path):
    path = tmp_path / "a.csv"
    x = np.random.default_rng(0).random((2000, 500)).round(4)
    lines = "\n".join(",".join(map(str, row)) for row in x.tolist())
    path.write_text(",".join(f"c{i}" for i in range(500)) + "\n" + lines)
    begin = time.process_time()  # of this process: other work on the machine does not count
    table = read_table(path)
    assert time.process_time() - begin < 1.5
    assert torch.equal(table.matrix(), torch.tensor(x))


# --- columns as arguments of a model


def model(sigma, y=None): ...


class Story:
    def model(self, y): ...


def test_columns_go_to_the_parameters_of_their_name(schools):
    table = read_table(schools)
    assert sorted(arguments_for(model, table)) == ["sigma", "y"]
    assert list(arguments_for(Story().model, table)) == ["y"]
    assert list(arguments_for(functools.partial(model, table["sigma"]), table)) == ["y"]


def test_data_and_a_single_parameter_get_the_matrix():
    table = Table({"a": torch.zeros(3), "b": torch.ones(3)})
    assert arguments_for(lambda data: None, table)["data"].shape == (3, 2)
    assert arguments_for(lambda x: None, table)["x"].shape == (3, 2)
    assert arguments_for(lambda data, b: None, table)["data"].shape == (3, 2)
    assert arguments_for(lambda a: None, table)["a"].shape == (3,)
    assert arguments_for(lambda: None, table) == {}
    town = Table({"town": torch.zeros(3)}, {"town": ("Ulm",)})
    with pytest.raises(DataError, match="town holds text"):
        arguments_for(lambda x: None, town)


@pytest.mark.parametrize("bad", [lambda a, weight: None, lambda x, y: None, lambda x=1: None])
def test_what_does_not_match_is_answered_with_both_lists(bad):
    table = Table({"a": torch.zeros(3), "b": torch.ones(3)}, path="my.csv")
    with pytest.raises(DataError, match=r"^my.csv: no column .* columns: a, b; the model's param"):
        arguments_for(bad, table)


def test_a_line_too_long_is_refused_and_never_cut_in_two(tmp_path, monkeypatch):
    monkeypatch.setattr("ppgen.data.csv_files._LONGEST_LINE", 8)
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n12345678901234\n")
    with pytest.raises(DataError, match="a line of more than 8 characters"):
        load(path)
