"""The session cookie's transport rules, as tables."""

import random
from http.cookies import SimpleCookie

import pytest

from shardproxy.core.sessions.cookies import CANDIDATES, Carriers, CookieRules, headers_beside, is_local

TRUSTED = ("10.0.0.0/8", "::1", "unix")


@pytest.mark.parametrize(
    ("scheme", "forwarded", "peer", "seen"),
    [
        ("https", "", "1.2.3.4", "https"),
        ("http", "", "1.2.3.4", "http"),
        ("wss", "", "1.2.3.4", "https"),
        ("ws", "", "1.2.3.4", "http"),
        ("http", "https", "1.2.3.4", "http"),  # anybody may say so
        ("http", "https", "10.1.2.3", "https"),
        ("http", "HTTPS", "10.1.2.3", "https"),
        ("https", "http", "10.1.2.3", "http"),  # TLS between proxy and us says nothing of the visitor
        ("http", "https, http", "10.1.2.3", "http"),  # the nearest proxy's word is the last
        ("http", "http , https ", "10.1.2.3", "https"),
        ("http", "javascript:", "10.1.2.3", "http"),
        ("http", "https,", "10.1.2.3", "http"),
        ("https", "", "10.1.2.3", "https"),
        ("http", "https", "::1", "https"),
        ("http", "https", "::ffff:10.0.0.1", "https"),
        ("http", "https", "fe80::1%eth0", "http"),
        ("http", "https", "", "https"),  # a unix socket
        ("http", "https", "testclient", "http"),  # no address
        ("http", "https", "10.1.2.3:80", "http"),
    ],
)
def test_the_visitors_scheme(scheme: str, forwarded: str, peer: str, seen: str) -> None:
    assert Carriers(CookieRules(), TRUSTED).scheme(scheme, forwarded, peer) == seen


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.1", "", "::1"])
def test_nobody_is_trusted_by_default(peer: str) -> None:
    assert Carriers(CookieRules()).scheme("http", "https", peer) == "http"


def test_trusted_without_unix_is_not_a_unix_socket() -> None:
    assert Carriers(CookieRules(), ("10.0.0.0/8",)).scheme("http", "https", "") == "http"


@pytest.mark.parametrize("wrong", ["everybody", "10.0.0.0/99", "*"])
def test_a_trusted_proxy_is_an_address(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"network|address"):
        Carriers(CookieRules(), (wrong,))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True), ("LocalHost:8000", True), ("app.localhost", True), ("127.0.0.1", True),
        ("127.8.9.1:80", True), ("[::1]", True), ("[::1]:8000", True), ("testserver", True), ("test", True),
        ("shop.test:5000", True), ("0.0.0.0:8000", True), (" localhost ", True),
        ("example.com", False), ("localhost.example.com", False), ("127.0.0.1.example.com", False),
        ("10.0.0.1", False), ("192.168.1.1:80", False), ("", False), ("[::2]", False), ("[", False),
        ("::1", False), ("notlocalhost", False), ("mytest", False), ("[::1", True), ("localhost\x00", False),
        (":80", False),
    ],
)  # fmt: skip
def test_local_hosts(host: str, local: bool) -> None:
    assert is_local(host) is local


@pytest.mark.parametrize(
    ("rules", "scheme", "host", "sent"),
    [
        (CookieRules(), "https", "example.com", "__Host-id=V; Path=/; Secure; HttpOnly; SameSite=Lax"),
        (CookieRules(), "https", "localhost", "__Host-id=V; Path=/; Secure; HttpOnly; SameSite=Lax"),
        (CookieRules(), "http", "localhost:8000", "id=V; Path=/; HttpOnly; SameSite=Lax"),
        (CookieRules(), "http", "example.com", None),
        (CookieRules(), "http", "", None),
        (CookieRules(name="sid"), "https", "a.b", "__Host-sid=V; Path=/; Secure; HttpOnly; SameSite=Lax"),
        (CookieRules(samesite="Strict"), "http", "test", "id=V; Path=/; HttpOnly; SameSite=Strict"),
        (CookieRules(samesite="None"), "https", "a.b",
         "__Host-id=V; Path=/; Secure; HttpOnly; SameSite=None"),
        (CookieRules(samesite="None"), "http", "test", "id=V; Path=/; HttpOnly; SameSite=Lax"),
        (CookieRules(domain="example.com"), "https", "app.example.com",
         "__Secure-id=V; Path=/; Domain=example.com; Secure; HttpOnly; SameSite=Lax"),
        (CookieRules(domain="example.com"), "http", "localhost", "id=V; Path=/; HttpOnly; SameSite=Lax"),
    ],
)  # fmt: skip
def test_what_is_sent_where(rules: CookieRules, scheme: str, host: str, sent: str | None) -> None:
    carrier = Carriers(rules).carrier(scheme, host)
    assert (carrier and carrier.set("V")) == sent


def test_persistent_and_dropped() -> None:
    carrier = Carriers(CookieRules()).secure
    assert carrier.set("V", 60) == "__Host-id=V; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert carrier.drop() == (
        "__Host-id=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Lax"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"name": "__Host-id"}, {"name": "a b"}, {"name": "a=b"}, {"name": "é"},
        {"name": "id\n"}, {"samesite": "lax"}, {"samesite": ""}, {"domain": "com"},
        {"domain": "example.com; Path=/"}, {"domain": "EXAMPLE.com"},
        {"clear_site_data": "x\r\nSet-Cookie: a=b"},
    ],
)  # fmt: skip
def test_rules_that_no_browser_would_keep(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"name|samesite|domain|clear_site_data"):
        CookieRules(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("", []),
        ("id=abc", ["abc"]),
        ("a=b; id=abc; c=d", ["abc"]),
        ("a=b;id=abc;c=d", ["abc"]),
        ("  id=abc  ", ["abc"]),
        ("id=a.b~c_d-e", ["a.b~c_d-e"]),
        ("id=", []),
        ("id", []),
        ("ID=abc", []),
        ("xid=abc", []),
        ("__Host-id=abc", []),
        ("id =abc", []),
        ('id="abc"', []),
        ("id=abc=", []),
        ("id=a b", []),
        ("id=é", []),
        ("id=ab\u0663", []),  # a digit, but not ASCII
        ("id=abc\n", []),
        ("id=abc\r\nx: y", []),
        ("id=abc\x00", []),
        ("id=" + "a" * 256, ["a" * 256]),
        ("id=" + "a" * 257, []),
        ("id=one; id=two", ["one", "two"]),
        ("id=one; id=one", ["one"]),
        ("x=id=abc", []),
        ('x="; id=abc', ["abc"]),  # no browser sends such a quotation: the name stands after a semicolon
        ("{bad json; [; id=abc; =; ;;", ["abc"]),
        (";" * 1000 + "id=abc", ["abc"]),
        ("; ".join(f"id={number}" for number in range(1000)), [str(number) for number in range(CANDIDATES)]),
    ],
)
def test_reading_cookie_headers(header: str, values: list[str]) -> None:
    assert Carriers(CookieRules()).plain.values(header) == values


def test_each_name_only_where_it_is_given() -> None:
    carriers = Carriers(CookieRules())
    header = "id=plain; __Host-id=secure; __Secure-id=shared"
    assert carriers.secure.values(header) == ["secure"]
    assert carriers.plain.values(header) == ["plain"]
    assert Carriers(CookieRules(domain="example.com")).secure.values(header) == ["shared"]


def test_a_long_header_takes_no_long_time() -> None:
    """Linear: two megabytes of what could make an expression go back and forth."""
    carrier = Carriers(CookieRules()).plain
    for piece in ("; ", ";\t" + " " * 64, "id=", "id=a", ";id=" + "a" * 300, "id=a;" + " " * 1000):
        assert len(carrier.values(piece * (2_000_000 // len(piece)))) <= CANDIDATES


def test_random_headers_give_only_what_is_ours() -> None:
    random_ = random.Random(7)
    carrier = Carriers(CookieRules()).plain
    for _ in range(2000):
        header = "".join(
            random_.choices(["id=", "a", ";", " ", "\t", '"', "=", "\x00", "ÿ", ",", "id", "."], k=24)
        )
        for value in carrier.values(header):
            assert value in header
            assert all(each.isascii() and (each.isalnum() or each in "_.~-") for each in value)


def test_what_is_set_is_read_by_others_and_by_us() -> None:
    carrier = Carriers(CookieRules()).secure
    parsed = SimpleCookie(carrier.set("a.b-c_d", 60))["__Host-id"]
    assert (parsed.value, parsed["secure"], parsed["httponly"], parsed["path"]) == (
        "a.b-c_d",
        True,
        True,
        "/",
    )
    assert carrier.values(f"__Host-id={parsed.value}") == ["a.b-c_d"]


@pytest.mark.parametrize(
    ("vary", "cache_control", "read", "cookie", "cleared", "found"),
    [
        ("", "", False, False, "", {}),
        ("", "", True, False, "", {"Vary": "Cookie", "Cache-Control": "private"}),
        ("", "public, max-age=60", True, False, "", {"Vary": "Cookie"}),
        ("Accept", "", True, False, "", {"Vary": "Accept, Cookie", "Cache-Control": "private"}),
        ("accept, cookie", "no-cache", True, False, "", {}),
        ("*", "no-cache", True, False, "", {}),
        ("Accept", "", False, False, "", {}),
        ("", "", False, True, "", {"Vary": "Cookie", "Cache-Control": "no-store"}),
        ("Cookie", "public, max-age=60", True, True, "", {"Cache-Control": "no-store"}),
        ("", "x", False, False, '"cookies"', {"Clear-Site-Data": '"cookies"'}),
    ],
)
def test_headers_beside(
    vary: str, cache_control: str, read: bool, cookie: bool, cleared: str, found: dict[str, str]
) -> None:
    assert headers_beside(vary, cache_control, read=read, cookie=cookie, cleared=cleared) == found
