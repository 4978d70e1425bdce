from shardproxy.dataplane.engine cimport Engine, Upstream

cdef void upstream_readable(Engine e, Upstream *u) noexcept
