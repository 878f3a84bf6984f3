/* Inline caches for what mypyc leaves to the interpreter.

   Included by every file that mypyc writes (compiled.py). Where the class of an object is not
   compiled, as a msgspec Struct's, mypyc reads an attribute by PyObject_GetAttr, which looks the
   name up in the class each time; a request does that some five hundred times. Here each place in
   the code keeps where it found the attribute last, as CPython's own LOAD_ATTR_SLOT,
   LOAD_METHOD_NO_DICT and LOAD_GLOBAL_MODULE do (PEP 659), and looks again when the version tag of
   the class, or of the dictionary of globals, is another. Both tags are CPython's: each state of a
   class or of a dictionary has its own, and none is given twice. Dictionaries lose theirs with
   3.13; from there on this file does nothing.

   All of it runs with the GIL held. What a cache points to is borrowed, and lives as long as the
   state that the tag stands for; of a name or a key it holds a reference. Items of other
   dictionaries pass by here as globals do, and are looked up again as these change. */

#ifndef TOKENWORKS_INLINE_CACHES_H
#define TOKENWORKS_INLINE_CACHES_H

#include <structmember.h>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030D0000 && defined(__GNUC__)

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* 3.12's tags of dictionaries */

/* A place that meets ever other classes looks so often, and then keeps what it has, if anything. */
#define TW_FILLS_MAX 64
#define TW_LIKELY(x) __builtin_expect(!!(x), 1)
#define TW_APART static __attribute__((noinline, unused))

typedef struct {
    unsigned int version; /* of a type */
    unsigned int fills;
    PyObject *name; /* NULL until it is filled */
    Py_ssize_t offset; /* of a slot in an object; 0 if the attribute is got from ``found`` */
    PyObject *found;   /* a descriptor, in the type */
} tw_type_cache;

typedef struct {
    uint64_t version; /* of a dictionary */
    unsigned int fills;
    PyObject *key; /* NULL until it is filled */
    PyObject *value;
} tw_dict_cache;

/* What a type has of a name; NULL if that may change without a new version tag. */
static inline PyObject *tw_found(PyTypeObject *type, PyObject *name) {
    if (type->tp_getattro != PyObject_GenericGetAttr || !PyUnicode_CheckExact(name)) {
        return NULL; /* other names may compare as they like */
    }
    PyObject *found = _PyType_Lookup(type, name);
    return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? found : NULL;
}

/* Whether it comes before an instance's dictionary, and always will: a descriptor's class that may
   change has a tag of its own, which no cache keeps. */
static inline int tw_comes_first(PyTypeObject *descriptor) {
    return descriptor->tp_descr_set != NULL && descriptor->tp_descr_get != NULL &&
           PyType_HasFeature(descriptor, Py_TPFLAGS_IMMUTABLETYPE);
}

/* Look an attribute up, and keep in the cache where it is. */
TW_APART PyObject *tw_look_up_attribute(PyObject *object, PyObject *name, tw_type_cache *cache) {
    PyTypeObject *type = Py_TYPE(object);
    if (cache->name == name && type->tp_version_tag == cache->version && !cache->offset) {
        PyObject *found = Py_NewRef(cache->found);
        PyObject *value = Py_TYPE(found)->tp_descr_get(found, object, (PyObject *)type);
        Py_DECREF(found);
        return value;
    }
    PyObject *found = cache->fills < TW_FILLS_MAX ? tw_found(type, name) : NULL;
    cache->fills += found != NULL;
    if (found == NULL || !tw_comes_first(Py_TYPE(found))) {
        return PyObject_GetAttr(object, name);
    }
    Py_ssize_t offset = 0;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        if (member->type == T_OBJECT_EX && !(member->flags & ~READONLY) &&
            PyType_IsSubtype(type, PyDescr_TYPE(found))) {
            offset = member->offset;
        }
    }
    cache->offset = offset;
    cache->found = found;
    cache->version = type->tp_version_tag;
    Py_XSETREF(cache->name, Py_NewRef(name));
    return PyObject_GetAttr(object, name);
}

static inline PyObject *tw_get_attribute(PyObject *object, PyObject *name, tw_type_cache *cache) {
    if (TW_LIKELY(Py_TYPE(object)->tp_version_tag == cache->version && cache->name == name &&
                  cache->offset)) {
        PyObject *value = *(PyObject **)((char *)object + cache->offset);
        if (TW_LIKELY(value != NULL)) {
            return Py_NewRef(value);
        }
    }
    return tw_look_up_attribute(object, name, cache);
}

/* Call a method by its name, and keep what it is in the cache. */
TW_APART PyObject *tw_look_up_method(PyObject *name, PyObject *const *args, size_t nargsf,
                                     PyObject *kwnames, tw_type_cache *cache) {
    PyTypeObject *type = Py_TYPE(args[0]);
    /* An instance's dictionary may hide the method. */
    if (cache->fills < TW_FILLS_MAX && !type->tp_dictoffset &&
        !PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT)) {
        PyObject *found = tw_found(type, name);
        cache->fills += found != NULL;
        if (found != NULL && PyType_HasFeature(Py_TYPE(found), Py_TPFLAGS_METHOD_DESCRIPTOR)) {
            cache->found = found;
            cache->version = type->tp_version_tag;
            Py_XSETREF(cache->name, Py_NewRef(name));
        }
    }
    return PyObject_VectorcallMethod(name, args, nargsf, kwnames);
}

static inline PyObject *tw_call_method(PyObject *name, PyObject *const *args, size_t nargsf,
                                       PyObject *kwnames, tw_type_cache *cache) {
    if (TW_LIKELY(Py_TYPE(args[0])->tp_version_tag == cache->version && cache->name == name)) {
        PyObject *found = Py_NewRef(cache->found);
        /* With the flag the first argument may be written over, which here is the object's. */
        PyObject *value =
            PyObject_Vectorcall(found, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
        Py_DECREF(found);
        return value;
    }
    return tw_look_up_method(name, args, nargsf, kwnames, cache);
}

/* Look an item up, and keep it in the cache. */
TW_APART PyObject *tw_look_up_item(PyObject *dict, PyObject *key, tw_dict_cache *cache) {
    if (cache->fills == TW_FILLS_MAX || !PyDict_CheckExact(dict) || !PyUnicode_CheckExact(key)) {
        return CPyDict_GetItem(dict, key);
    }
    uint64_t version = ((PyDictObject *)dict)->ma_version_tag;
    PyObject *value = CPyDict_GetItem(dict, key);
    /* Another key's comparison may have changed it meanwhile. */
    if (value != NULL && ((PyDictObject *)dict)->ma_version_tag == version) {
        cache->fills++;
        cache->version = version;
        cache->value = value;
        Py_XSETREF(cache->key, Py_NewRef(key));
    }
    return value;
}

static inline PyObject *tw_get_item(PyObject *dict, PyObject *key, tw_dict_cache *cache) {
    if (TW_LIKELY(cache->key == key && PyDict_CheckExact(dict) &&
                  ((PyDictObject *)dict)->ma_version_tag == cache->version)) {
        return Py_NewRef(cache->value);
    }
    return tw_look_up_item(dict, key, cache);
}

#pragma GCC diagnostic pop

/* A statement's own cache: GNU C's statement expressions may have statics. */
#define PyObject_GetAttr(object, name)                                                            \
    __extension__({                                                                               \
        static tw_type_cache tw_cache;                                                            \
        tw_get_attribute((object), (name), &tw_cache);                                            \
    })
#define PyObject_VectorcallMethod(name, args, nargsf, kwnames)                                    \
    __extension__({                                                                               \
        static tw_type_cache tw_cache;                                                            \
        tw_call_method((name), (args), (nargsf), (kwnames), &tw_cache);                           \
    })
#define CPyDict_GetItem(dict, key)                                                                \
    __extension__({                                                                               \
        static tw_dict_cache tw_cache;                                                            \
        tw_get_item((dict), (key), &tw_cache);                                                    \
    })

#endif
#endif
