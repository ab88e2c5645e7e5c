/* Fields of many messages in one pass, as the functions of the same names in fields.py take them.

   A message's fields are read by the functions behind the methods of confluent_kafka.Message, without a call through
   the interpreter. These methods take no argument; the import fails where one does, and fields.py keeps to Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { ERROR, PARTITION, VALUE, KEY, HEADERS, METHODS };

static const char *const names[METHODS] = {"error", "partition", "value", "key", "headers"};
static PyCFunction methods[METHODS];
static PyTypeObject *message_type;
static PyObject *drop_headers;

/* The message at `place`, borrowed from the list, whose length must still be `count`; NULL with an exception if not. */
static PyObject *message_at(PyObject *messages, Py_ssize_t place, Py_ssize_t count)
{
    if (PyList_GET_SIZE(messages) != count) {
        PyErr_SetString(PyExc_RuntimeError, "the list of messages changed its length");
        return NULL;
    }
    PyObject *message = PyList_GET_ITEM(messages, place);
    if (!PyObject_TypeCheck(message, message_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Message, not %.100s", Py_TYPE(message)->tp_name);
        return NULL;
    }
    return message;
}

static int is_list(PyObject *messages)
{
    if (!PyList_Check(messages))
        PyErr_Format(PyExc_TypeError, "expected a list of messages, not %.100s", Py_TYPE(messages)->tp_name);
    return PyList_Check(messages);
}

static PyObject *has_error(PyObject *Py_UNUSED(module), PyObject *messages)
{
    if (!is_list(messages))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(messages);
    for (Py_ssize_t place = 0; place < count; place++) {
        PyObject *message = message_at(messages, place, count);
        PyObject *error = message == NULL ? NULL : methods[ERROR](message, NULL);
        if (error == NULL)
            return NULL;
        Py_DECREF(error);
        if (error != Py_None)
            Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

static PyObject *of_one_partition(PyObject *Py_UNUSED(module), PyObject *messages)
{
    if (!is_list(messages))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(messages);
    PyObject *first = NULL;
    int same = 1;
    for (Py_ssize_t place = 0; place < count && same > 0; place++) {
        PyObject *message = message_at(messages, place, count);
        PyObject *partition = message == NULL ? NULL : methods[PARTITION](message, NULL);
        if (partition == NULL)
            same = -1;
        else if (first == NULL)
            first = Py_NewRef(partition);
        else
            same = PyObject_RichCompareBool(first, partition, Py_EQ);
        Py_XDECREF(partition);
    }
    Py_XDECREF(first);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

/* How many bytes a key or a value has, 0 for what is false; -1 with an exception. */
static Py_ssize_t size_of(PyObject *data)
{
    if (data == Py_None)
        return 0;
    if (PyBytes_CheckExact(data))
        return PyBytes_GET_SIZE(data);
    int filled = PyObject_IsTrue(data);
    return filled > 0 ? PyObject_Size(data) : filled;
}

/* How many bytes the names and values of headers have; -1 with an exception. */
static Py_ssize_t size_of_headers(PyObject *headers)
{
    Py_ssize_t size = 0;
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(headers); place++) {
        PyObject *header = PySequence_Fast(PyList_GET_ITEM(headers, place), "a header must be a name and a value");
        if (header == NULL)
            return -1;
        Py_ssize_t more = 0;
        for (Py_ssize_t part = 0; more >= 0 && part < PySequence_Fast_GET_SIZE(header); part++) {
            more = size_of(PySequence_Fast_GET_ITEM(header, part));
            size += more;
        }
        Py_DECREF(header);
        if (more < 0)
            return -1;
    }
    return size;
}

/* The headers of a message in a list of their own, or None; those that the binding cannot read are dropped. */
static PyObject *headers_of(PyObject *message)
{
    PyObject *headers = methods[HEADERS](message, NULL);
    if (headers == Py_None)
        return headers;
    if (PyErr_Occurred() == NULL && headers != NULL) {
        PyObject *own = PySequence_List(headers);
        Py_DECREF(headers);
        return own;
    }
    if (headers == NULL && PyErr_Occurred() != NULL)
        return NULL;
    /* A list with an exception set, or neither: the interpreter would make a SystemError of that. */
    Py_XDECREF(headers);
    PyErr_Clear();
    PyObject *dropped = PyObject_CallOneArg(drop_headers, message);
    if (dropped == NULL)
        return NULL;
    Py_DECREF(dropped);
    return Py_NewRef(Py_None);
}

static PyObject *take(PyObject *Py_UNUSED(module), PyObject *messages)
{
    if (!is_list(messages))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(messages), size = 0;
    int any_headers = 0;
    PyObject *values = PyList_New(count), *keys = PyList_New(count), *headers = PyList_New(count);
    if (values == NULL || keys == NULL || headers == NULL)
        goto failed;
    for (Py_ssize_t place = 0; place < count; place++) {
        PyObject *message = message_at(messages, place, count);
        if (message == NULL)
            goto failed;
        PyObject *own = headers_of(Py_NewRef(message));
        PyObject *value = own == NULL ? NULL : methods[VALUE](message, NULL);
        PyObject *key = value == NULL ? NULL : methods[KEY](message, NULL);
        Py_DECREF(message);
        Py_ssize_t of_value = key == NULL ? -1 : size_of(value);
        Py_ssize_t of_key = of_value < 0 ? -1 : size_of(key);
        Py_ssize_t of_headers = of_key < 0 ? -1 : own == Py_None ? 0 : size_of_headers(own);
        if (of_headers < 0) {
            Py_XDECREF(value);
            Py_XDECREF(key);
            Py_XDECREF(own);
            goto failed;
        }
        any_headers |= own != Py_None && PyList_GET_SIZE(own) > 0;
        size += of_value + of_key + of_headers;
        PyList_SET_ITEM(values, place, value);
        PyList_SET_ITEM(keys, place, key);
        PyList_SET_ITEM(headers, place, own);
    }
    if (!any_headers)
        Py_SETREF(headers, Py_NewRef(Py_None));
    return Py_BuildValue("(NNNn)", values, keys, headers, size);

failed:
    Py_XDECREF(values);
    Py_XDECREF(keys);
    Py_XDECREF(headers);
    return NULL;
}

static PyMethodDef functions[] = {
    {"has_error", has_error, METH_O, NULL},
    {"of_one_partition", of_one_partition, METH_O, NULL},
    {"take", take, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_fields", .m_size = -1, .m_methods = functions,
};

/* An attribute of a module, or NULL with an exception. */
static PyObject *imported(const char *module, const char *name)
{
    PyObject *found = PyImport_ImportModule(module);
    PyObject *attribute = found == NULL ? NULL : PyObject_GetAttrString(found, name);
    Py_XDECREF(found);
    return attribute;
}

PyMODINIT_FUNC PyInit__fields(void)
{
    message_type = (PyTypeObject *)imported("confluent_kafka", "Message");
    drop_headers = message_type == NULL ? NULL : imported("workers.kafka.messages", "drop_headers");
    if (drop_headers == NULL)
        return NULL;
    for (int each = 0; each < METHODS; each++) {
        PyObject *method = PyObject_GetAttrString((PyObject *)message_type, names[each]);
        if (method == NULL)
            return NULL;
        PyMethodDef *found = Py_IS_TYPE(method, &PyMethodDescr_Type) ? ((PyMethodDescrObject *)method)->d_method : NULL;
        Py_DECREF(method);
        if (found == NULL || found->ml_flags != METH_NOARGS) {
            PyErr_Format(PyExc_ImportError, "Message.%s of this confluent-kafka takes arguments", names[each]);
            return NULL;
        }
        methods[each] = found->ml_meth;
    }
    return PyModule_Create(&definition);
}
