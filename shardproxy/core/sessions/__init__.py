"""The rules of the session store: no sockets, clocks or randomness; whoever runs them brings those.

errors      every exception
keyring     what is derived from the secrets: ids, cookies, tags, names of records
records     how a session looks in Redis: fields, their encoding, timeouts
cookies     where the cookie may go and what goes with it
data        what one request has of a session: a dictionary that knows its changes
scripts     each operation as one Lua script
model       the same scripts in Python, on a dictionary
rules       what all operations need
reading     from a cookie to a record
writing     creating, saving, renewal
operations  what a store does, as generators of calls of those scripts; login and the end
"""
