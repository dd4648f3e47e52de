"""Campaigns: links and shares of annotators, skipped prompts, and answers that give nothing of this machine away."""

import json
import os
from collections import Counter
from itertools import combinations

import pytest

pytest.importorskip("starlette", reason="the annotation app needs diffusers_ext[app]")

from annotation import Client, candidates, judgement, lines_of, served
from starlette.testclient import TestClient

from diffusers_ext.commands import annotate
from diffusers_ext.errors import InputError
from diffusers_ext.preferences import rankings
from diffusers_ext.preferences.annotate.access import make_access, read_access
from diffusers_ext.preferences.annotate.campaign import assign
from diffusers_ext.preferences.annotate.items import read_items
from diffusers_ext.preferences.annotate.server import make_app
from diffusers_ext.preferences.annotate.session import Session

ORIGIN = "http://127.0.0.1:7861"
HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ACCESS = make_access("t" * 32, "project", ["ada", "bob"])


@pytest.fixture
def folder(tmp_path):
    return candidates(tmp_path / "candidates")


@pytest.fixture
def session(folder):
    return Session(folder, read_items(folder), seed=0)


def client_of(session, token=ACCESS.token, allowed=()) -> TestClient:
    app = make_app(session, ACCESS, HOSTS, allowed)
    client = TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN}, raise_server_exceptions=False)
    assert client.get("/", params={"token": token}).status_code == 200
    return client


def skipping(item: dict, **changes) -> dict:
    body = judgement(item, [1, 2, 3])
    return {name: body[name] for name in ("id", "images", "display", "nonce", "replaces")} | changes


# ---- who judges what


@pytest.mark.parametrize("people, overlap, count", [(5, 2, 101), (3, 3, 10), (7, 1, 40), (4, 3, 33)])
def test_every_prompt_goes_to_as_many_and_all_get_equal_shares(people, overlap, count):
    names, ids = [f"person{n}" for n in range(people)], [f"prompt {n}" for n in range(count)]
    shares = assign(ids, names, overlap, seed=0)
    times = Counter(id for share in shares.values() for id in share)
    assert times == dict.fromkeys(ids, overlap)
    assert max(map(len, shares.values())) - min(map(len, shares.values())) <= 1
    assert assign(ids, names, overlap, seed=0) == shares
    more = assign([*ids, "new"], names, overlap, seed=0)
    assert {name: share - {"new"} for name, share in more.items()} == shares


def test_who_meets_whom_is_mixed():
    shares = assign([str(n) for n in range(300)], list("abcde"), 2, seed=1)
    together = [len(shares[one] & shares[other]) for one, other in combinations("abcde", 2)]
    assert min(together) > 15


@pytest.mark.parametrize(
    "options, message",
    [
        ({"annotators": ["ada", "bob"], "overlap": 3}, "--overlap 3"),
        ({"annotators": ["ada", "bob"], "overlap": 0}, "--overlap 0"),
        ({"overlap": 2}, "--annotators"),
        ({"annotators": ["ada", "Ada"]}, "ada twice"),
        ({"annotators": ["ada", "a/b"]}, "letters, digits"),
        ({"annotators": ["ada"], "annotator": "bob"}, "--annotator for one"),
    ],
)
def test_a_campaign_that_makes_no_sense_is_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        annotate.main(annotate.Options(folder=str(folder), **options))


def test_a_person_sees_their_share_and_its_progress(folder):
    items = read_items(folder)
    shares = {"ada": {"p0", "p2"}, "bob": {"p1", "p2"}}
    session = Session(folder, items, 0, shares)
    assert session.progress("ada")["total"] == 2 and session.progress("ada")["todo"] == [0, 1]
    item = session.item("ada", 0)
    session.save("ada", judgement(item, [1, 2, 3]))
    assert session.progress("ada")["judged"] == 1
    with pytest.raises(InputError, match="2 prompts"):
        session.item("ada", 2)
    with pytest.raises(InputError, match="none of the annotators"):
        session.progress("cyd")
    other = Session(folder, items, 0).item("bob", 0)
    with pytest.raises(InputError, match="not asked"):
        session.save("bob", {**judgement(other, [1, 2, 3]), "id": "p0", "images": session.images[0]})
    people = {each["annotator"]: (each["judged"], each["asked"]) for each in session.report()["people"]}
    assert people == {"ada": (1, 2), "bob": (0, 2)}


# ---- skipping


def test_a_prompt_is_skipped_and_judged_later(session, folder):
    item = session.item("ada", 0)
    saved = session.skip("ada", skipping(item))
    assert session.progress("ada") == {"annotator": "ada", "total": 3, "judged": 0, "todo": [1, 2]}
    assert session.skipped("ada") == [0] and session.item("ada", 0)["skipped"]
    assert session.skip("ada", skipping(item)) == saved  # sent again: written once
    again = Session(folder, read_items(folder), seed=0)
    assert again.skipped("ada") == [0] and not any(each.rankings for each in again.judged())
    again.save("ada", judgement(again.item("ada", 0), [1, 2, 3], nonce="after all"))
    assert again.skipped("ada") == [] and again.progress("ada")["judged"] == 1
    assert [line.get("skipped", False) for line in lines_of(folder, "ada")] == [True, False]
    path = folder / "annotations" / "bob.jsonl"
    path.write_text(json.dumps(lines_of(folder, "ada")[0]) + "\n")
    assert rankings.read(path)[0].rankings == ()  # a line of a rankings file, as earlier versions read it


def test_a_skip_after_a_correction_elsewhere_is_refused(session):
    from diffusers_ext.preferences.annotate.store import Conflict

    item = session.item("ada", 0)
    session.save("ada", judgement(item, [1, 2, 3]))
    with pytest.raises(Conflict):
        session.skip("ada", skipping(item, nonce="another one"))


# ---- pictures that vanish


@pytest.mark.parametrize("spoil", ["unlink", "empty", "page", "folder"])
def test_a_missing_picture_blocks_nobody(session, folder, spoil):
    client = client_of(session)
    item = client.get("/api/item?annotator=ada&position=0").json()
    place = session.order("ada")[0]
    path = session.items[place].images[1]
    kept = path.read_bytes()
    path.unlink()
    if spoil == "folder":
        path.mkdir()
    elif spoil != "unlink":
        path.write_bytes(b"" if spoil == "empty" else b"<html>")
    again = client.get("/api/item?annotator=ada&position=0")
    assert again.status_code == 200 and again.json()["missing"] == [1]
    picture = client.get(f"/image/{place}/1")
    assert picture.status_code == 404 and "missing" in picture.json()["error"]
    refused = client.post("/api/judgement", json={"annotator": "ada", **judgement(item, [1, 2, 3])})
    assert refused.status_code == 400 and "missing" in refused.json()["error"]
    for answer in (again, picture, refused):
        assert str(folder) not in answer.text and str(folder.parent) not in answer.text
    assert client.post("/api/skip", json={"annotator": "ada", **skipping(item)}).json()["skipped"] == [0]
    assert client.get("/api/item?annotator=ada&position=1").json()["missing"] == []
    path.rmdir() if spoil == "folder" else path.unlink(missing_ok=True)
    path.write_bytes(kept)
    back = client.get("/api/item?annotator=ada&position=0").json()
    assert back["missing"] == []
    body = {"annotator": "ada", **judgement(back, [1, 2, 3], nonce="it is back")}
    assert client.post("/api/judgement", json=body).json()["judged"] == 1


def test_no_answer_names_a_path_of_the_server(session, folder, monkeypatch):
    from diffusers_ext.preferences.annotate import store

    client = client_of(session)
    item = client.get("/api/item?annotator=ada&position=0").json()
    body = {"annotator": "ada", **judgement(item, [1, 2, 3])}

    def refused(*given, **more):
        raise PermissionError(13, "Permission denied", str(folder / "annotations" / "ada.jsonl"))

    with monkeypatch.context() as patch:
        patch.setattr(store.Judgements, "_write", refused)
        answers = [client.post("/api/judgement", json=body)]
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "ada.jsonl").write_text('{"id": "p\n{}\n')
    answers += [client.get("/api/progress?annotator=ada"), client.post("/api/judgement", json=body)]
    assert [answer.status_code for answer in answers] == [500, 500, 500]
    assert all(str(folder) not in answer.text and answer.json()["error"] for answer in answers)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 50_000,
        b'{"annotator": "ada", "display": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"annotator": "ada", "id": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
        b'{"annotator": ' + b"9" * 5000 + b"}",
        b'{"annotator": "\\ud800", "nonce": "\\ud800\\ud800"}',
        b"\xff\xfe{}",
    ],
)
def test_odd_json_is_a_bad_request(session, content):
    client = client_of(session)
    for path in ("/api/judgement", "/api/skip"):
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]


def test_a_nonce_that_no_file_can_hold_is_refused(session):
    item = session.item("ada", 0)
    for nonce in ("\ud800" * 10, "short", 12345678):
        with pytest.raises(InputError, match="nonce"):
            session.save("ada", judgement(item, [1, 2, 3], nonce=nonce))


# ---- links and tokens


def test_a_personal_link_is_for_one_name(session):
    client = client_of(session, ACCESS.link_of("bob"))
    assert client.get("/api/progress?annotator=Bob").json()["total"] == 3
    for path in ("/api/progress?annotator=ada", "/api/item?annotator=ada&position=0"):
        assert client.get(path).status_code == 400 and "bob's" in client.get(path).json()["error"]
    item = session.item("ada", 0)
    for path, body in (("/api/judgement", judgement(item, [1, 2, 3])), ("/api/skip", skipping(item))):
        assert client.post(path, json={"annotator": "ada", **body}).status_code == 400
    assert client.get("/image/0/0").status_code == 200
    with pytest.raises(AssertionError):
        client_of(session, make_access("t" * 32, "", ["cyd"]).link_of("cyd"))  # nobody of this campaign


def test_the_token_stays_with_the_folder_and_is_the_owners(tmp_path):
    one = read_access(tmp_path / "a", ["ada"])
    assert read_access(tmp_path / "a", ["ada"]) == one
    other = read_access(tmp_path / "b")
    assert other.token != one.token and other.project != one.project
    if os.name == "posix":
        assert (tmp_path / "a" / ".access.json").stat().st_mode & 0o077 == 0
    for text in ("", "{}", "[]", '{"token": 1, "project": "x"}'):
        (tmp_path / "b" / ".access.json").write_text(text)
        with pytest.raises(InputError, match="remove it"):
            read_access(tmp_path / "b")


def test_links_are_printed_and_stay(folder):
    options = ("--port", "0", "--annotators", "ada", "bob", "--overlap", "1")
    with served(folder, *options) as (process, address, _):
        own = process.stdout.readline() + process.stdout.readline()
        client = Client(address)
        assert sum(client.get(f"/api/progress?annotator={name}")["total"] for name in ("ada", "bob")) == 3
        link = next(word for word in own.split() if "annotator=bob" in word)
        assert Client(link).get("/api/progress?annotator=bob")["todo"]
    with served(folder, *options) as (_, again, _):
        assert again.split("token=")[1] == address.split("token=")[1]


# ---- behind a proxy


@pytest.mark.parametrize(
    "origin, site, allowed, status",
    [
        ("http://127.0.0.1:9000", "same-origin", (), 200),  # a proxy on this machine that sets Host
        ("http://localhost:9000", "same-origin", (), 200),
        ("http://127.0.0.1:9000", "same-site", (), 403),  # a page of another server on this machine
        ("http://127.0.0.1:9000", None, (), 403),
        ("https://judge.example", "same-origin", (), 403),  # a name rebound to the proxy
        ("https://judge.example", "same-origin", ("judge.example",), 200),
        ("https://judge.example", None, ("judge.example",), 200),
        ("https://judge.example:8443", None, ("judge.example",), 403),
        ("https://judge.example:8443", None, ("judge.example:8443",), 200),
        ("https://evil.example", "cross-site", ("judge.example",), 403),
        ("http://[", "same-origin", (), 403),
    ],
)
def test_a_proxy_may_set_host_and_other_sites_still_cannot_write(session, origin, site, allowed, status):
    client = client_of(session, allowed=allowed)
    client.headers["origin"] = origin
    if site:
        client.headers["sec-fetch-site"] = site
    item = session.item("ada", 0)
    answer = client.post("/api/judgement", json={"annotator": "ada", **judgement(item, [1, 2, 3])})
    assert answer.status_code == status
    if status == 403:
        assert "--allowed_host" in answer.json()["error"]


def test_a_proxy_that_keeps_host_needs_its_name_allowed(session):
    for allowed, status in (((), 400), (("judge.example",), 200), (("judge.example:8443",), 200)):
        client = client_of(session, allowed=allowed)
        answer = client.get("/api/report", headers={"host": "judge.example:8443"})
        assert answer.status_code == status
        if status == 400:
            assert "--allowed_host" in answer.text
