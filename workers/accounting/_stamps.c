/* Looks for stamps in many values, as the functions of the same names in stamps.py do. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

static const char MAGIC[] = {'k', 'w', '1', ' '};
/* The digits of a sequence, which end what are_consecutive is given. */
enum { DIGITS = 12 };

static PyObject *none_is_stamp(PyObject *Py_UNUSED(module), PyObject *values)
{
    if (!PyList_Check(values))
        return PyErr_Format(PyExc_TypeError, "expected a list of values, not %.100s", Py_TYPE(values)->tp_name);
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(values); place++) {
        PyObject *value = PyList_GET_ITEM(values, place);
        if (value == Py_None)
            continue;
        if (!PyBytes_Check(value))
            Py_RETURN_FALSE;
        if (PyBytes_GET_SIZE(value) >= (Py_ssize_t)sizeof MAGIC
            && memcmp(PyBytes_AS_STRING(value), MAGIC, sizeof MAGIC) == 0)
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

/* Count a number up that is written in `DIGITS` digits; 0 where it was the highest. */
static int count_up(char *digits)
{
    for (int place = DIGITS - 1; place >= 0; place--) {
        if (digits[place] != '9') {
            digits[place]++;
            return 1;
        }
        digits[place] = '0';
    }
    return 0;
}

static PyObject *are_consecutive(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t given)
{
    char begin[64];
    if (given != 2 || !PyList_Check(arguments[0]) || !PyBytes_Check(arguments[1])
        || PyBytes_GET_SIZE(arguments[1]) < DIGITS) {
        PyErr_SetString(PyExc_TypeError, "expected a list of values, and the beginning of a stamp");
        return NULL;
    }
    PyObject *values = arguments[0];
    size_t length = (size_t)PyBytes_GET_SIZE(arguments[1]);
    /* No stamp has so many digits. */
    if (length > sizeof begin || PyList_GET_SIZE(values) == 0)
        Py_RETURN_FALSE;
    memcpy(begin, PyBytes_AS_STRING(arguments[1]), length);
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(values); place++) {
        PyObject *value = PyList_GET_ITEM(values, place);
        if (!PyBytes_Check(value) || (size_t)PyBytes_GET_SIZE(value) < length
            || memcmp(PyBytes_AS_STRING(value), begin, length) != 0)
            Py_RETURN_FALSE;
        if (!count_up(begin + length - DIGITS) && place + 1 < PyList_GET_SIZE(values))
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyMethodDef functions[] = {
    {"are_consecutive", (PyCFunction)(void (*)(void))are_consecutive, METH_FASTCALL, NULL},
    {"none_is_stamp", none_is_stamp, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_stamps", .m_size = 0, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__stamps(void)
{
    return PyModuleDef_Init(&definition);
}
