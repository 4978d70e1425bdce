"""core/acl and core/permit: rules ↔ records, what is wrong with rules, and who may run what.

Compared with a live Redis in tests/property/test_users_like_redis.py; here is what Redis cannot say.
"""

import hashlib

import pytest

from shardproxy.core import acl_rules
from shardproxy.core.acl import Selector, User, Users
from shardproxy.core.command_rows import KeySpec, Row
from shardproxy.core.commands import CommandTable, builtin
from shardproxy.core.permit import Permit

TABLE = builtin()
SECRET = hashlib.sha256(b"secret").hexdigest()


def user(rules: str) -> User:
    found, wrong = acl_rules.parse("u", acl_rules.words_of(rules))
    assert wrong == []
    return found


def verdict(who: User | None, *args: str, table: CommandTable = TABLE, trust: bool = False) -> str:
    return Permit(who, table, trust).examine([arg.encode() for arg in args])[0]


# --- rules ---


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ("", "user u off resetchannels -@all"),
        ("on >secret ~app:* &c* +@all -@dangerous",
         f"user u on #{SECRET} ~app:* resetchannels &c* +@all -@dangerous"),
        ("on nopass allkeys allchannels allcommands", "user u on nopass ~* &* +@all"),
        ("on >secret nopass", "user u on nopass resetchannels -@all"),
        (">secret <secret", "user u off resetchannels -@all"),
        ("on +@all reset +get", "user u off resetchannels -@all +get"),
        ("%r~a %W~a %RW~b %W~c", "user u off ~a ~b %W~c resetchannels -@all"),
        ("+config|get +config -config|set", "user u off resetchannels -@all +config -config|set"),
        ("+@all -get +get -config|get -config", "user u off resetchannels +@all +get -config"),
        ("-get -@read +set", "user u off resetchannels -@all +set"),
        ("+get (~a +set) ( %R~b  -@all +get )",
         "user u off resetchannels -@all +get (~a resetchannels -@all +set) (%R~b resetchannels -@all +get)"),
        ("+JSON.GET +@json +hexpire", "user u off resetchannels -@all +json.get +@json +hexpire"),
    ],
)  # fmt: skip
def test_a_user_is_described_in_few_words(rules: str, text: str) -> None:
    found = user(rules)
    assert found.describe() == text
    assert user(text.removeprefix("user u ")) == found


@pytest.mark.parametrize(
    ("word", "found", "allowed"),
    [
        ("+gett", '"+gett"', "did you mean get?"),
        ("-flushal", '"-flushal"', "did you mean flushall?"),
        ("+@raed", '"+@raed"', "did you mean @read?"),
        ("+config|gte", '"+config|gte"', "a subcommand of config: "),
        ("-get|x", '"-get|x"', "after a + only"),
        ("%Q~x", '"%Q~x"', "%R~PATTERN"),
        ("%~x", '"%~x"', "%R~PATTERN"),
        ("(+get", '"(+get"', "a closing parenthesis"),
        ("(>hunter2 +get)", '"... +get)"', "ACL language"),
        ("#1234", "#...", "64 lower-case hexadecimal digits"),
        ("<never", "<...", "a password that was given before"),
        ("!" + "a" * 64, "!...", "a password that was given before"),
        ("hunter2", "a word that is not shown", "ACL language"),
        ("nopas", "a word that is not shown", "did you mean nopass?"),
        ("", "a word that is not shown", "ACL language"),
    ],
)
def test_a_wrong_word_is_named_unless_it_may_be_a_password(word: str, found: str, allowed: str) -> None:
    who, wrong = acl_rules.parse("u", ["on", word, "+ping"])
    assert len(wrong) == 1
    assert wrong[0].found == found and allowed in wrong[0].allowed
    assert who.enabled and who.root.commands == ("+ping",)


def test_nothing_may_follow_all_of_something() -> None:
    _, wrong = acl_rules.parse("u", ["allkeys", "~x", "allchannels", "&x", "resetkeys", "~x"])
    assert [each.found for each in wrong] == ['"~x"', '"&x"']


def test_more_rules_are_applied_to_a_user_all_or_none() -> None:
    who = user("on >secret ~a* +get (~b +set)")
    more = acl_rules.modify(
        who, ["off", "+set", "~c", "clearselectors", "(~d", "+@read)", "", "<secret", "nopass"]
    )
    assert more.describe() == (
        "user u off nopass ~a* ~c resetchannels -@all +get +set (~d resetchannels -@all +@read)"
    )
    assert acl_rules.modify(who, ["reset"]) == User("u") and acl_rules.modify(who, []) is who
    with pytest.raises(acl_rules.Refused):
        acl_rules.modify(who, ["+del", "+nope"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([">a", "hunter2"], "..."), (["<hunter2"], "<..."), (["#hunter2"], "#..."), (["!hunter2"], "!..."),
        (["(+get", "hunter2)"], "(+get ..."), (["(+get", ">hunter2"], "(+get"), (["+nope"], "+nope"),
        (["~a\r\nb"], "~a ..."),
    ],
)  # fmt: skip
def test_a_refusal_tells_no_password(words: list[str], found: str) -> None:
    with pytest.raises(acl_rules.Refused) as refused:
        acl_rules.modify(User("u"), words)
    assert refused.value.found == found
    assert "hunter2" not in str(refused.value) + str(refused.value.__cause__)


def test_users_travel_as_bytes() -> None:
    rules = ["on", ">secret", "~\udcff*", "~\u00a0x", "&\x1c", "+@all", "-get", "(%R~b +get)"]
    made = acl_rules.modify(User("(x"), rules)
    users = Users({made.name: made, "é": User("é")}, True, {"é": 5})
    assert acl_rules.users_from_wire(users.to_wire()) == users


@pytest.mark.parametrize("name", ["", "a b", "a\0", "a\n", "\udcff", "a\u2028", "x" * 129])
def test_names_that_a_file_could_not_hold(name: str) -> None:
    assert not acl_rules.is_name(name) and acl_rules.is_name("é(:-)" + "x" * 123)


def test_users_change() -> None:
    users = Users({"a": user("on"), "b": user("on")}, limits={"a": 3})
    assert users.with_changes(gone=["a", "c"]).by_name.keys() == {"b", "default"}
    changed = users.with_changes([User("c")])
    assert changed.by_name.keys() == {"a", "b", "c", "default"} and changed.limits == {"a": 3}


def test_passwords_are_in_no_text_of_a_record() -> None:
    who = user("on >secret ~secret-key +get")
    users = Users({"u": who})
    for text in (repr(who), repr(users), str(who)):
        assert "secret" not in text.replace("secret-key", "") and SECRET not in text


def test_logins() -> None:
    users = Users(
        {"a": user("on >secret >other"), "n": user("on nopass"), "x": user("off >secret nopass >secret")}
    )
    assert users.login("a", b"secret") == users.login("a", b"other") == users.get("a")
    assert users.login("n", b"anything") is not None
    for name, password in (("a", b""), ("a", b"Secret"), ("x", b"secret"), ("nobody", b"secret"), ("", b"")):
        assert users.login(name, password) is None
    assert users.login("nobody", b"0" * 64) is None
    assert users.login("default", b"") is not None  # not named, so as in Redis


def test_who_is_not_named_is_the_free_default() -> None:
    assert Users().default.everything and Users().default.open
    assert not Users({"default": user("off")}).default.open
    assert [each.name for each in Users({"b": User("b"), "é": User("é"), "a": User("a")}).listed()] == [
        "a", "b", "default", "é",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "everything"),
    [
        ("~* &* +@all", True), ("~* &* +@all +get", True), ("(~* &* +@all)", True), ("~* +@all", False),
        ("&* +@all ~a", False),
        ("~* &* +@all -get", False), ("~* &* -@all +@read", False), ("%RW~* &* +@all", True),
        ("%R~* &* +@all", False),
    ],
)  # fmt: skip
def test_who_may_do_everything_needs_no_check(rules: str, everything: bool) -> None:
    assert user(rules).everything == everything == Permit(user(rules), TABLE).everything


# --- verdicts ---


def test_before_the_login() -> None:
    for args in (("AUTH", "x"), ("hello",), ("RESET",), ("quit",)):
        assert verdict(None, *args) == "allowed"
        assert verdict(User("u"), *args) == "allowed"
    for row in TABLE.records:
        if "no_auth" not in row.flags and not row.subcommands:
            assert verdict(None, *row.name.split("|"), "x", "y") == "auth"


def test_scripts_are_refused_to_who_may_not_do_everything() -> None:
    for name in ("eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "FCALL_RO"):
        args = (name, "s", "1", "a")
        assert verdict(user("~a &* +@all"), *args) == "script"
        assert verdict(user("~* +@all"), *args) == "script"
        assert verdict(user("~a +@all"), *args, trust=True) == "allowed"
        assert verdict(user("~b +@all"), *args, trust=True) == verdict(user("~b +@all"), *args) == "key"
        assert verdict(user("~* &* +@all"), *args) == "allowed"
    assert verdict(user("~* +@scripting"), "script", "load", "x") == "allowed"


def test_sort_reads_no_key_that_it_does_not_name() -> None:
    who = user("~a &* +@all")
    assert verdict(who, "sort", "a", "BY", "w*") == "by"
    assert verdict(who, "sort", "a", "limit", "0", "1", "get", "#") == "get"
    assert verdict(who, "sort", "a", "BY", "nosort") == "allowed"
    assert verdict(who, "sort", "a", "limit", "by", "x*", "BY", "x*") == "by"
    assert verdict(who, "sort_ro", "b", "BY", "w*") == "key"
    assert verdict(user("~* +@all"), "sort", "a", "BY", "w*") == "allowed"
    assert verdict(user("%R~* ~a +@all"), "sort", "a", "BY", "w*", "GET", "x*") == "allowed"


def learned(*specs: KeySpec, categories: tuple[str, ...] = ("read",)) -> CommandTable:
    row = Row(name="x.new", arity=-2, categories=categories, key_specs=specs, kind="forward", learned=True)
    return CommandTable([*TABLE.rows(), row])


def test_learned_commands_are_in_categories_and_in_all() -> None:
    table = learned(KeySpec(index=1, flags=("RO", "access")))
    assert verdict(user("~a +@all"), "X.New", "a", table=table) == "allowed"
    assert verdict(user("~a +@read"), "x.new", "a", table=table) == "allowed"
    assert verdict(user("~a +@write"), "x.new", "a", table=table) == "command"
    assert verdict(user("~a +x.new"), "x.new", "b", table=table) == "key"
    assert verdict(user("%R~a +@all"), "x.new", "a", table=table) == "allowed"
    assert verdict(user("%W~a +@all"), "x.new", "a", table=table) == "key"


def test_a_learned_command_that_does_not_say_what_it_does_with_a_key_needs_both() -> None:
    table = learned(KeySpec(index=1))
    assert verdict(user("%R~a +@all"), "x.new", "a", table=table) == "key"
    assert verdict(user("%R~a* ~a +@all"), "x.new", "a", table=table) == "allowed"


def test_a_learned_command_whose_keys_cannot_be_told_is_denied() -> None:
    table = learned(KeySpec(index=1, find="keynum", count=0, first=1))
    assert verdict(user("~a* +@all"), "x.new", "1", "a", table=table) == "allowed"
    assert verdict(user("~a* +@all"), "x.new", "7", "a", table=table) == "key"
    assert verdict(user("~* +@all"), "x.new", "7", "a", table=table) == "allowed"


def test_many_arguments() -> None:
    who = user("~a* +@all")
    for count in (1, 63, 64, 65, 5000):
        keys = [f"a{number}" for number in range(count)]
        assert verdict(who, "del", *keys) == "allowed"
        assert Permit(who, TABLE).examine([b"del", *(key.encode() for key in keys), b"b"]) == (
            "key",
            count + 1,
        )


def test_rules_for_what_is_not_in_the_table_do_nothing() -> None:
    names, first = acl_rules.allowed(
        Selector(("+x.new", "+@json", "+get", "+select|0", "+select|1")), TABLE.records
    )
    assert names == {"get"} and first == {"select": ("0", "1")}
