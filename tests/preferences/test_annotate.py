"""The annotation app: judgements that were answered as saved stay, whatever happens; what is not one is refused."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from http.client import HTTPException

import pytest

pytest.importorskip("starlette", reason="the annotation app needs diffusers_ext[app]")

from annotation import Client, candidates, judgement, lines_of, served
from PIL import Image
from starlette.testclient import TestClient

from diffusers_ext.commands import annotate
from diffusers_ext.errors import InputError
from diffusers_ext.preferences import rankings
from diffusers_ext.preferences.annotate import server, store
from diffusers_ext.preferences.annotate.items import identity, read_items
from diffusers_ext.preferences.annotate.session import Session
from diffusers_ext.preferences.annotate.store import Conflict, Judgements, annotator_name

TOKEN = "t" * 32
ORIGIN = "http://127.0.0.1:7861"


@pytest.fixture
def folder(tmp_path):
    return candidates(tmp_path / "candidates")


@pytest.fixture
def session(folder):
    return Session(folder, read_items(folder), seed=0)


def judge(session: Session, annotator: str, id: str, ranking: list[int], **changes) -> dict:
    """Save a judgement of one item, wherever it stands in this person's order."""
    position = next(at for at, place in enumerate(session.order(annotator)) if session.items[place].id == id)
    return session.save(annotator, judgement(session.item(annotator, position), ranking, **changes))


# ---- the store


def test_a_line_is_on_the_disk_before_it_counts_as_saved(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(store.os, "fsync", lambda handle: synced.append(os.fstat(handle)))
    judgements = Judgements(tmp_path, "ada")
    for number in range(2):
        judgements.append({"id": "p0", "nonce": f"n{number}"}, replaces=number)
        sizes = [status.st_size for status in synced if status.st_ino == judgements.path.stat().st_ino]
        assert len(sizes) == number + 1 and sizes[-1] == judgements.path.stat().st_size
    assert any(status.st_ino == tmp_path.stat().st_ino for status in synced)  # the new file's name, too


def test_what_the_disk_refuses_is_not_saved_and_leaves_no_trace(tmp_path, monkeypatch):
    judgements = Judgements(tmp_path, "ada")
    judgements.append({"id": "p0", "nonce": "first"}, replaces=0)
    before = judgements.path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(store.os, "fsync", full)
        judgements.append({"id": "p0", "nonce": "second"}, replaces=1)
    assert judgements.path.read_bytes() == before and judgements.latest()["p0"]["nonce"] == "first"
    judgements.append({"id": "p0", "nonce": "second"}, replaces=1)
    assert [each["nonce"] for each in map(json.loads, judgements.path.open())] == ["first", "second"]


def test_a_line_cut_anywhere_is_removed_and_no_other(tmp_path):
    judgements = Judgements(tmp_path, "ada")
    for number in range(2):
        judgements.append({"id": f"p{number}", "nonce": "n", "prompt": "Größe ⭘"}, replaces=0)
    whole = judgements.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        judgements.path.write_bytes(whole[:cut])
        again = Judgements(tmp_path, "ada")
        complete = cut == len(whole) - 1  # only the line break is missing: nothing is lost
        assert set(again.latest()) == ({"p0", "p1"} if complete else {"p0"})
        again.append({"id": "p2", "nonce": "n"}, replaces=0)
        assert set(Judgements(tmp_path, "ada").latest()) == set(again.latest())


def test_a_damaged_line_is_named_not_skipped(tmp_path):
    (tmp_path / "ada.jsonl").write_text('{"id": "p0"}\n{"id": "p\n{"id": "p2"}\n')
    with pytest.raises(InputError, match=r"ada\.jsonl:2: damaged.*restore the file"):
        Judgements(tmp_path, "ada")


def test_the_last_judgement_wins_and_all_stay_in_the_file(tmp_path):
    judgements = Judgements(tmp_path, "ada")
    for number in range(3):
        judgements.append({"id": "p0", "nonce": f"n{number}"}, replaces=number)
    assert Judgements(tmp_path, "ada").latest()["p0"]["nonce"] == "n2"
    assert len(judgements.path.read_text().splitlines()) == 3


def test_a_repeated_save_is_written_once_and_a_stale_one_is_refused(tmp_path):
    one, other = Judgements(tmp_path, "ada"), Judgements(tmp_path, "ada")
    saved = one.append({"id": "p0", "nonce": "n0"}, replaces=0)
    assert one.append({"id": "p0", "nonce": "n0"}, replaces=0) == saved
    with pytest.raises(Conflict) as caught:
        other.append({"id": "p0", "nonce": "n1"}, replaces=0)
    assert caught.value.newer == saved and len(one.path.read_text().splitlines()) == 1


def test_a_file_put_back_from_a_backup_is_read_anew(tmp_path):
    judgements = Judgements(tmp_path, "ada")
    judgements.append({"id": "p0", "nonce": "n"}, replaces=0)
    backup = judgements.path.read_bytes()
    judgements.append({"id": "p1", "nonce": "n"}, replaces=0)
    judgements.path.write_bytes(backup)
    assert set(judgements.latest()) == {"p0"}
    judgements.path.unlink()
    assert judgements.latest() == {}


WRITER = """
import sys
from pathlib import Path
from threading import Thread
from diffusers_ext.preferences.annotate.store import Judgements
def write(name):
    judgements = Judgements(Path(sys.argv[1]), "ada")
    for number in range(int(sys.argv[2])):
        judgements.append({"id": f"{name}-{number}", "nonce": "n", "text": "x" * 3000}, replaces=0)
        print(f"{name}-{number}", flush=True)
threads = [Thread(target=write, args=(f"{sys.argv[3]}-{thread}",)) for thread in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_and_processes_at_once_lose_nothing(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "20"]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    said = [name for writer in writers for name in writer.communicate(timeout=60)[0].split()]
    assert len(said) == 80 and set(Judgements(tmp_path, "ada").latest()) == set(said)


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    for delay in (0.0, 0.02, 0.05, 0.1):
        acknowledged, folder = [], tmp_path / str(delay)
        command = [sys.executable, "-c", WRITER, str(folder), "100000", "a"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            acknowledged.append(writer.stdout.readline().strip())
            time.sleep(delay)
            writer.kill()
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        assert set(acknowledged) <= set(Judgements(folder, "ada").latest())


def test_names_become_files_safely():
    assert annotator_name("  Ada ") == annotator_name("ADA") == "ada"
    assert annotator_name("Zoe\u0308") == "zoë"
    for bad in ("", ".", "..", "../ada", "a/b", "a\\b", "a.b", "-rf", "_x", "a b", "x" * 41, "a\0", "a\nb"):
        with pytest.raises(InputError, match="letters, digits"):
            annotator_name(bad)


# ---- what is judged


def test_both_tables_give_the_same_prompts(folder, tmp_path):
    items = read_items(folder)
    rows = [
        {"file_name": str(image.relative_to(folder)), "text": item.prompt} for item in items for image in item.images
    ]
    (folder / "candidates.jsonl").unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grouped = read_items(folder)
    assert [(item.prompt, item.images) for item in grouped] == [(item.prompt, item.images) for item in items]
    assert grouped[0].id == identity("a red circle")
    (folder / "metadata.jsonl").unlink()
    (folder / "scores.json").write_text(json.dumps([{**row, "score": 0.5} for row in rows]))
    assert [item.images for item in read_items(folder)] == [item.images for item in items]


def test_rankings_already_there_are_not_shown(folder):
    given = [rankings.Ranking("ada", (1, 2, 3))]
    items = [rankings.RankedPrompt(item.id, item.prompt, item.images, tuple(given)) for item in read_items(folder)]
    (folder / "candidates.jsonl").unlink()
    rankings.write(folder / "rankings.jsonl", items)
    assert all(item.rankings == () for item in read_items(folder))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "x", "prompt": "a", "images": ["../secret.png"]}, "lies outside"),
        ({"id": "x", "prompt": "a", "images": ["/etc/hostname.png"]}, "lies outside"),
        ({"id": "x", "prompt": "a", "images": ["link.png"]}, "lies outside"),
        ({"id": "x", "prompt": "a", "images": ["images/none.png"]}, "no such file"),
        ({"id": "x", "prompt": "a", "images": ["candidates.jsonl"]}, "not a picture"),
        ({"id": "x", "prompt": "a", "images": ["images/a.svg"]}, "not a picture"),
        ({"id": "x", "prompt": "a", "images": []}, "images: empty"),
        ({"id": "x", "prompt": 5, "images": ["images/0-0.png"]}, "prompt: expected a text"),
        ({"id": "x", "prompt": "a", "images": ["images/0-0.png"] * 2}, "names an image twice"),
        ({"id": "p0", "prompt": "a", "images": ["images/0-0.png"]}, "id: 'p0' is also at"),
        ({"file_name": 5, "prompt": "a"}, "expected"),
        ([1], "expected objects"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused(folder, row, message):
    (folder.parent / "secret.png").write_bytes((folder / "images/0-0.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "images/a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with open(folder / "candidates.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_items(folder)


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds none of candidates\.jsonl"):
        read_items(tmp_path)


# ---- the session


def test_orders_differ_by_person_and_stay_when_prompts_are_added(tmp_path):
    prompts = tuple(f"prompt {number}" for number in range(12))
    folder = candidates(tmp_path, images=6, prompts=prompts)
    items = read_items(folder)
    session = Session(folder, items, seed=0)
    people = ("ada", "bob", "cyd")
    assert len({tuple(session.order(name)) for name in people}) == 3
    assert sorted(session.order("ada")) == list(range(12))
    shown = {tuple(session.shown(name, item)) for name in people for item in items}
    assert len(shown) > 30 and all(sorted(each) == list(range(6)) for each in shown)
    assert Session(folder, items, seed=0).order("ada") == session.order("ada")
    assert Session(folder, items, seed=1).order("ada") != session.order("ada")
    fewer = Session(folder, items[:8], seed=0).order("ada")
    assert fewer == [place for place in session.order("ada") if place < 8]


def test_a_judgement_is_a_line_of_a_rankings_file(session, folder):
    judge(session, "ada", "p1", [2, 1, 1], prompt_flags=["ambiguous"])
    (read,) = rankings.read(folder / "annotations" / "ada.jsonl")
    assert read.images == session.items[1].images and read.prompt_flags == ("ambiguous",)
    (ranking,) = read.rankings
    assert asdict(ranking) == {
        "annotator": "ada",
        "ranking": (2, 1, 1),
        "ratings": ({"overall": 4, "alignment": 5, "fidelity": 6},) * 3,
        "issues": (("limbs",), (), ()),
        "time_s": 12.5,
        "valid": True,
    }
    (line,) = lines_of(folder, "ada")
    assert line["display"]["shown"] == session.shown("ada", session.items[1]) and line["revision"] == 1


def test_progress_goes_on_where_it_stopped(session, folder):
    position = session.progress("ada")["todo"][0]
    item = session.item("ada", position)
    session.save("ada", judgement(item, [1, 2, 3]))
    again = Session(folder, read_items(folder), seed=0)
    assert again.progress("ada") == {"annotator": "ada", "total": 3, "judged": 1, "todo": [1, 2]}
    assert again.item("ada", position)["judgement"]["rankings"][0]["ranking"] == [1, 2, 3]
    assert again.progress("bob")["judged"] == 0 and again.item("bob", 0)["judgement"] is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ranking": [1, 2]}, "2 values for 3 images"),
        ({"ranking": [1, None, 2]}, "whole rank from 1 to 3"),
        ({"ranking": [0, 1, 2]}, "whole rank"),
        ({"ranking": [1.5, 1, 2]}, "whole rank"),
        ({"ranking": [True, 1, 2]}, "ranking"),
        ({"ranking": "123"}, "expected a list"),
        ({"ratings": [{"overall": 4}] * 3}, "alignment, fidelity"),
        ({"ratings": []}, "give each image"),
        ({"ratings": [{"overall": 8, "alignment": 1, "fidelity": 1}] * 3}, "from 1 to 7"),
        ({"issues": [["ugly"], [], []]}, "issues"),
        ({"issues": [["sex", "sex"], [], []]}, "each once"),
        ({"issues": []}, "issues"),
        ({"prompt_flags": ["long"]}, "prompt_flags"),
        ({"time_s": "long"}, "time_s"),
        ({"display": {"seed": 0, "position": 0, "shown": [0, 0, 1]}}, "display"),
        ({"display": None}, "display"),
        ({"nonce": "x"}, "nonce"),
        ({"replaces": None}, "replaces"),
        ({"images": ["../images/other.png"]}, "have changed"),
        ({"id": "nobody"}, "have changed"),
    ],
)
def test_an_incomplete_judgement_is_refused(session, folder, change, message):
    with pytest.raises(InputError, match=message):
        session.save("ada", {**judgement(session.item("ada", 0), [1, 2, 3]), **change})
    assert not (folder / "annotations" / "ada.jsonl").exists()


def test_a_judgement_of_images_that_changed_does_not_count(session, folder):
    for id in ("p0", "p1"):
        judge(session, "ada", id, [1, 2, 3])
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    rows[0]["images"] = rows[0]["images"][:2]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = Session(folder, read_items(folder), seed=0)
    assert again.progress("ada")["judged"] == 1
    judge(again, "ada", "p0", [1, 2], nonce="after the change")  # and can be judged again
    assert again.progress("ada")["judged"] == 2


def test_the_report_counts_progress_and_agreement(session):
    for name, ranking in (("ada", [1, 2, 3]), ("bob", [1, 2, 3]), ("cyd", [3, 2, 1]), ("dee", [1, 1, 1])):
        judge(session, name, "p0", ranking)
    judge(session, "ada", "p1", [1, 2, 3])
    report = session.report()
    assert report["total"] == 3
    assert [(each["annotator"], each["judged"]) for each in report["people"]] == [
        ("ada", 2),
        ("bob", 1),
        ("cyd", 1),
        ("dee", 1),
    ]
    assert all(each["median_s"] == 12.5 for each in report["people"])
    found = {tuple(pair["people"]): (pair["count"], pair["agreement"], pair["kendall"]) for pair in report["pairs"]}
    assert found[("ada", "bob")] == (3, 1.0, 1.0)
    assert found[("ada", "cyd")] == (3, 0.0, -1.0)
    assert found[("cyd", "dee")] == (0, None, None)  # a tie agrees with nothing and contradicts nothing
    assert report["agreement"] == pytest.approx(1 / 3, abs=1e-4)
    assert report["people"][0]["agreement"] == 0.5


def test_export_writes_everybodys_last_judgement(session, folder, tmp_path, capsys):
    judge(session, "ada", "p0", [1, 2, 3])
    judge(session, "ada", "p0", [3, 2, 1], nonce="corrected", prompt_flags=["harmful"])
    judge(session, "bob", "p0", [1, 1, 2])
    path = tmp_path / "out" / "rankings.jsonl"
    annotate.main(annotate.Options(folder=str(folder), export=str(path)))
    (item,) = rankings.read(path)
    assert {each.annotator: each.ranking for each in item.rankings} == {"ada": (3, 2, 1), "bob": (1, 1, 2)}
    assert item.images == session.items[0].images and item.prompt_flags == ("harmful",)
    assert "1 of 3 prompts, 2 rankings" in capsys.readouterr().out


# ---- over HTTP


@pytest.fixture
def client(session):
    """A client with the cookie of this run, which says where its writing comes from."""
    app = server.make_app(session, TOKEN, ["127.0.0.1", "localhost", "[::1]"])
    client = TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN}, raise_server_exceptions=False)
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    return client


def post(client: TestClient, **changes):
    item = client.get("/api/item?annotator=ada&position=0").json()
    return client.post("/api/judgement", json={"annotator": "Ada", **judgement(item, [1, 2, 3]), **changes})


def test_a_judgement_comes_back_over_http(client, folder):
    answer = post(client).json()
    assert answer["judged"] == 1 and answer["todo"] == [1, 2] and answer["saved"]["revision"] == 1
    assert len(lines_of(folder, "ada")) == 1
    assert post(client, nonce="another one", replaces=0).status_code == 409
    assert client.get("/api/report").json()["people"][0]["judged"] == 1
    assert client.get("/image/1/2").headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "path", ["/", "/?token=wrong", "/page/page.js", "/api/item?annotator=ada&position=0", "/image/0/0", "/none"]
)
def test_without_the_token_nothing_is_given(client, path):
    client.cookies.clear()
    assert client.get(path).status_code == 403
    client.cookies.set("annotate_7861", "t" * 31)
    assert client.get(path).status_code == 403


def test_the_token_stays_in_a_cookie_that_no_other_site_uses(client):
    client.cookies.clear()
    (cookie,) = client.get("/", params={"token": TOKEN}).headers.get_list("set-cookie")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.get("/api/report").status_code == 200
    assert client.get("/api/report", params={"token": TOKEN}).headers.get_list("set-cookie") == []


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null", ""])
def test_other_pages_cannot_write(client, folder, origin):
    client.headers["origin"] = origin
    assert post(client).status_code == 403
    del client.headers["origin"]
    assert post(client).status_code == 403
    assert not (folder / "annotations" / "ada.jsonl").exists()


def test_a_name_rebound_to_this_machine_is_refused(client):
    assert client.get("/api/report", headers={"host": "evil.example:7861"}).status_code == 400
    assert client.get("/", params={"token": TOKEN}, headers={"host": "evil.example:7861"}).status_code == 400
    assert client.get("/api/report", headers={"host": "localhost:7861"}).status_code == 200
    assert client.get("/api/report", headers={"host": "[::1]:7861"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/../store.py",
        "/page/%2e%2e/store.py",
        "/page/..%2fstore.py",
        "/page//etc/passwd",
        "/image/0/../../candidates.jsonl",
        "/image/0/9",
        "/image/9/0",
        "/image/-1/0",
        "/image/0/0.png",
        "/annotations/ada.jsonl",
    ],
)
def test_files_go_by_number_and_no_others_go(client, path):
    assert client.get(path).status_code == 404


def test_bad_requests_are_answered_and_change_nothing(client, folder):
    headers = {"content-type": "application/json"}
    for sent in (
        {"content": b"{", "headers": headers},
        {"content": b"[]", "headers": headers},
        {"content": b'{"annotator": "ada"}', "headers": headers},
        {"content": b'{"annotator": "../x"}', "headers": headers},
        {"content": b" " * 70_000, "headers": headers},
        {"content": b"{}", "headers": {"content-type": "text/plain"}},
        {"data": {"annotator": "ada"}},
    ):
        answer = client.post("/api/judgement", **sent)
        assert answer.status_code == 400 and answer.json()["error"], sent
    for query in (
        "",
        "?annotator=ada&position=-1",
        "?annotator=ada&position=3",
        "?annotator=ada&position=x",
        "?annotator=..&position=0",
    ):
        assert client.get(f"/api/item{query}").status_code == 400
    assert client.get("/api/judgement").status_code == 405
    assert post(client, ranking=[1, 2]).status_code == 400
    assert not (folder / "annotations" / "ada.jsonl").exists()


def test_a_full_disk_is_said_and_nothing_counts(client, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        answer = post(client)
    assert answer.status_code == 500 and "No space left" in answer.json()["error"]
    assert client.get("/api/progress?annotator=ada").json()["judged"] == 0
    assert post(client).status_code == 200


def test_only_our_own_scripts_may_run(client):
    for path in ("/", "/page/page.js", "/api/report", "/image/0/0"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    for page in server.PAGE.iterdir():
        assert (
            "http://" not in page.read_text().replace("http://www.w3.org/2000/svg", "")
            and "https://" not in page.read_text()
        )
        assert "innerHTML" not in page.read_text()


def test_the_page_knows_the_same_words_as_the_schema():
    from diffusers_ext.preferences.annotate.session import PROMPT_FLAGS

    script = (server.PAGE / "judgement.js").read_text()
    for name, words in (("AXES", rankings.RATINGS), ("ISSUES", rankings.ISSUES), ("PROMPT_FLAGS", PROMPT_FLAGS)):
        assert f"export const {name} = {json.dumps(list(words))};" in script


# ---- the command


def test_the_command_survives_kill_9_in_the_middle_of_a_session(folder):
    """Two people save as fast as they can until the server is killed; all that it acknowledged is there again."""
    acknowledged = []

    def work(name: str) -> None:
        client = Client(address)
        try:
            for number in range(100_000):
                item = client.get(f"/api/item?annotator={name}&position={number % 3}")
                nonce = f"{name}-{number:08}"
                client.post("/api/judgement", {"annotator": name, **judgement(item, [1, 2, 3], nonce)})
                acknowledged.append(nonce)
        except (OSError, HTTPException):
            return

    with served(folder, "--port", "0") as (process, address, _):
        people = [threading.Thread(target=work, args=(name,)) for name in ("ada", "bob")]
        for person in people:
            person.start()
        while len(acknowledged) < 40:
            assert process.poll() is None and any(person.is_alive() for person in people)
            time.sleep(0.01)
        process.kill()
        for person in people:
            person.join()
    again = Session(folder, read_items(folder), seed=0)
    assert all(again.progress(name)["judged"] == 3 for name in ("ada", "bob"))
    kept = {line["nonce"] for name in ("ada", "bob") for line in lines_of(folder, name)}
    assert set(acknowledged) <= kept and len(kept) - len(acknowledged) <= 2


def test_a_taken_port_and_a_bad_host_are_explained(session):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*another --port"):
            annotate.serve(session, "127.0.0.1", port, None)
    with pytest.raises(InputError, match="--host"):
        annotate.serve(session, "no.such.host.invalid", 0, None)


def test_another_host_than_loopback_is_warned_of(folder):
    with served(folder, "--host", "0.0.0.0", "--port", "0", "--annotator", "Ada") as (_, address, said):
        assert "reached from other machines" in said and address.endswith("annotator=ada")
        port = address.split("/?")[0].rsplit(":")[-1]
        client = Client(f"http://127.0.0.1:{port}/?{address.split('/?')[1]}")
        assert client.get("/api/progress?annotator=ada")["total"] == 3


def test_the_folder_of_a_reranking_is_judged_without_its_scores(tmp_path):
    (tmp_path / "candidates").mkdir()
    names = [f"candidates/{number}.png" for number in range(3)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    drawn = [{"number": at, "score": at, "image": names[at]} for at in (2, 0, 1)]
    record = {
        "prompts": [{"prompt": "a red circle", "candidates": [*drawn, {"number": 3, "score": -1, "image": None}]}]
    }
    (tmp_path / "scores.json").write_text(json.dumps(record))
    (item,) = read_items(tmp_path)
    assert item.prompt == "a red circle" and item.images == tuple(tmp_path / name for name in names)
    assert not item.rankings
