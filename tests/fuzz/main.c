/* libFuzzer's entry: starts Python, imports the harness and calls its C function for every input. */

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

static int (*target)(const uint8_t *, size_t);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    PyConfig config;
    PyConfig_InitPythonConfig(&config); /* reads PYTHONPATH, PYTHONMALLOC */
    config.parse_argv = 0;
    config.install_signal_handlers = 0;
    PyStatus status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
    PyObject *module = PyImport_ImportModule("fuzz_harness");
    PyObject *address = module ? PyObject_CallMethod(module, "address", NULL) : NULL;
    if (address == NULL) {
        PyErr_Print();
        exit(1);
    }
    target = (int (*)(const uint8_t *, size_t))(uintptr_t)PyLong_AsUnsignedLongLong(address);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { return target(data, size); }
