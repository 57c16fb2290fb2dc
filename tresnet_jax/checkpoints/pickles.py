"""Pickle streams -> plain values and inert records. Nothing that a stream names is imported, and none of its code runs.

`pickletools.genops` of the standard library decodes the instructions; `Unpickler` executes those that checkpoints need
and refuses the others. A class or a function of the stream is a name here (`Global`). A call of it gives a `Record` of
the name and the arguments, unless the table of functions that `Unpickler` receives has an entry for that name.
"""

import dataclasses
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from tresnet_jax.checkpoints.records import (
    PLAIN_CONTAINERS,
    Global,
    Leaf,
    Record,
    Unreadable,
    described,
    printable,
    walk,
)
from tresnet_jax.errors import reason

MOST_INSTRUCTIONS = 2_000_000  # a ResNet-200-D with its average and AdamW has 144,256
MOST_NESTED = 500  # containers within containers; Python's own recursion limit is 1000
# Keys of dictionaries are plain values and short, flat tuples of them: the hash of a nested tuple that shares its parts
# takes 2 ** depth steps, and a dictionary compares equal keys again and again.
MOST_IN_A_KEY = 64
LONGEST_KEY = 10_000

# What decoding a damaged stream raises; SystemError for text of NumPy that has numbers which are not characters.
DAMAGE = (ValueError, TypeError, AttributeError, ArithmeticError, struct.error, EOFError, MemoryError, SystemError)
# A name with dots; '<locals>' has brackets, and the file name of a module may have hyphens.
NAME = re.compile(r'[\w<>-]+(\.[\w<>-]+)+')
LONGEST_NAME = 500
# Module names of Python 2 and NumPy 1, and their names today.
RENAMED = (
    ('__builtin__', 'builtins'),
    ('copy_reg', 'copyreg'),
    ('numpy.core', 'numpy._core'),
)
# Instructions whose argument is the value itself.
VALUES = frozenset(
    'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE '
    'SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8'.split()
)


@dataclasses.dataclass(eq=False, slots=True)
class Pending:
    """An object that the next BUILD instruction completes.

    Attributes:
        finish: function from the state in that instruction to the object.
        places: the keys of the stream's memo that refer to it.
    """

    finish: Callable[[Any], Any]
    places: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Budget:
    """The work that the streams of one file may still cause, nested streams included.

    Attributes:
        size: bytes to copy; a stream can have one string of its own copied again and again.
        instructions: instructions to execute; a string counts twice, and each element that a call copies, each
            attribute, and each name in the path of a container counts as one.
    """

    size: int
    instructions: int = MOST_INSTRUCTIONS

    def spend(self, instructions: int = 0, size: int = 0) -> None:
        self.instructions -= instructions
        self.size -= size
        if self.instructions < 0:
            raise Unreadable(f'its pickle has more than {MOST_INSTRUCTIONS:,} instructions; save the state_dict alone')
        if self.size < 0:
            raise Unreadable('its pickle copies more bytes than the file has')


class Unpickler:
    """The reader of one stream.

    Args:
        stream: a binary file with `read` and `readline`, at the beginning of the pickle.
        functions: name -> the function to call instead. It may return a `Pending`. It raises `Unreadable`, or TypeError
            for arguments that do not fit.
        persistent_load: function from a persistent id, which can be any value, to the object. None: there are no ids.
        budget: the work that is left for this stream.
    """

    def __init__(
        self,
        stream: Any,
        functions: Mapping[str, Callable[..., Any]],
        persistent_load: Callable[[Any], Any] | None,
        budget: Budget,
    ) -> None:
        self._stream = stream
        self._functions = functions
        self._persistent_load = persistent_load
        self._budget = budget
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._globals: dict[str, Global] = {}

    def load(self) -> Any:
        """Return the object of the stream, and leave the stream positioned after it.

        Raises:
            Unreadable: the stream is damaged, has an instruction that is not allowed, or costs too much.
        """
        try:
            value = self._run()
            for path, _ in walk(value):
                if len(path) > MOST_NESTED:
                    raise Unreadable(f'its pickle nests containers more than {MOST_NESTED} deep')
                self._budget.spend(instructions=len(path))  # whoever walks the result keeps this many names
            return value
        except Unreadable:
            raise
        except IndexError:
            raise Unreadable('its pickle is damaged (a value is missing); fetch it again') from None
        except KeyError:
            raise Unreadable(
                'its pickle is damaged (it refers to a value that it does not store); fetch it again'
            ) from None
        except DAMAGE as error:
            raise Unreadable(f'its pickle is damaged ({printable(reason(error))}); fetch it again') from error

    def _run(self) -> Any:
        memo = self._memo
        argument: Any
        for opcode, argument, _ in pickletools.genops(self._stream):
            self._budget.spend(instructions=1)
            stack = self._stack
            name = opcode.name
            if name in VALUES:
                if isinstance(argument, str | bytes | bytearray):  # 60 bytes of memory for 4 of the file
                    self._budget.spend(instructions=1)
                stack.append(argument)
                continue
            match name:
                case 'BINPUT' | 'MEMOIZE' | 'LONG_BINPUT' | 'PUT':
                    place = len(memo) if name == 'MEMOIZE' else argument
                    memo[place] = stack[-1]
                    if type(stack[-1]) is Pending:
                        stack[-1].places.append(place)
                case 'BINGET' | 'LONG_BINGET' | 'GET':
                    stack.append(memo[argument])
                case 'MARK':
                    self._below_marks.append(stack)
                    self._stack = []
                case 'TUPLE':
                    self._push(tuple(self._since_mark()))
                case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                    count = int(name[-1])
                    if len(stack) < count:
                        raise IndexError
                    stack[-count:] = [tuple(stack[-count:])]
                case 'REDUCE' | 'NEWOBJ':
                    arguments = stack.pop()
                    self._call(stack.pop(), arguments, None)
                case 'NEWOBJ_EX':
                    keywords, arguments = stack.pop(), stack.pop()
                    self._call(stack.pop(), arguments, keywords)
                case 'BUILD':
                    self._build(stack.pop())
                case 'BINPERSID':
                    if self._persistent_load is None:
                        raise Unreadable('its pickle refers to data outside of the pickle')
                    self._push(self._persistent_load(stack.pop()))
                case 'GLOBAL':
                    self._push(self._global(*argument.split(' ', 1)))
                case 'STACK_GLOBAL':
                    class_name = stack.pop()
                    self._push(self._global(stack.pop(), class_name))
                case 'SETITEMS':
                    self._set_items(self._since_mark())
                case 'SETITEM':
                    value, key = stack.pop(), stack.pop()
                    self._set_items([key, value])
                case 'APPENDS':
                    self._append(self._since_mark())
                case 'APPEND':
                    self._append([stack.pop()])
                case 'ADDITEMS':
                    self._add_items(self._since_mark())
                case 'NONE':
                    stack.append(None)
                case 'NEWTRUE' | 'NEWFALSE':
                    stack.append(name == 'NEWTRUE')
                case 'EMPTY_TUPLE':
                    stack.append(())
                case 'EMPTY_LIST' | 'EMPTY_DICT' | 'EMPTY_SET':
                    # They take two to four times the memory of other values: 72 to 232 bytes in addition to their
                    # place.
                    self._budget.spend(instructions=4 if name == 'EMPTY_SET' else 1)
                    stack.append({'EMPTY_LIST': list, 'EMPTY_DICT': dict, 'EMPTY_SET': set}[name]())
                case 'LIST':
                    self._push(self._since_mark())
                case 'DICT':
                    items = self._since_mark()
                    self._push({})
                    self._set_items(items)
                case 'FROZENSET':
                    self._push(frozenset(map(checked_key, self._since_mark())))
                case 'POP' if stack:
                    stack.pop()
                case 'POP' | 'POP_MARK':
                    self._since_mark()
                case 'PROTO' if argument <= pickle.HIGHEST_PROTOCOL:
                    pass
                case 'PROTO':
                    raise Unreadable(f'its pickle has the unknown protocol {argument}')
                case 'FRAME':
                    pass  # the length of what a reader may fetch at once
                case 'STOP':
                    return stack.pop()
                case _:
                    raise Unreadable(f'its pickle has the instruction {name}, which no checkpoint needs')

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        """Remove and return the values since the last MARK."""
        items = self._stack
        self._stack = self._below_marks.pop()
        return items

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Record:
            target.elements = target.elements or []
            target.elements.extend(items)
        elif type(target) is list:
            target.extend(items)
        else:
            raise Unreadable(f'its pickle appends to {described(target)}')

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Record:
            target.mapping = target.mapping or {}
            target = target.mapping
        if type(target) is not dict:
            raise Unreadable(f'its pickle sets an item of {described(target)}')
        target.update(zip(map(checked_key, items[::2]), items[1::2], strict=True))

    def _add_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not set:
            raise Unreadable(f'its pickle adds to {described(target)}')
        target.update(map(checked_key, items))

    def _global(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str:
            raise Unreadable('its pickle names a class by something other than text')
        for old, new in RENAMED:
            if module == old or module.startswith(f'{old}.'):
                module = new + module[len(old) :]
        full_name = f'{module}.{name}'
        if len(full_name) > LONGEST_NAME or not NAME.fullmatch(full_name):
            raise Unreadable(f'its pickle names a class with odd characters: {printable(full_name, 80)}')
        return self._globals.setdefault(full_name, Global(full_name))

    def _call(self, function: Any, arguments: Any, keywords: Any) -> None:
        if type(function) not in (Global, Record):
            raise Unreadable(f'its pickle calls {described(function)}')
        if type(arguments) is not tuple or type(keywords) not in (dict, type(None)):
            raise Unreadable(f'its pickle calls {described(function)} without a tuple of arguments')
        self._budget.spend(len(arguments) + len(keywords or ()))
        if type(function) is Record:  # a class or a function that is stored itself, as by cloudpickle and dill
            return self._push(Record(f'{function.class_name}()', (function, *arguments), keywords or None))
        known = None if keywords else self._functions.get(function.name)
        if known is None:
            return self._push(Record(function.name, arguments, keywords or None))
        self._budget.spend(_elements(arguments))
        try:
            self._push(known(*arguments))
        except TypeError:
            raise Unreadable(f'its pickle calls {function.name} with arguments that do not fit') from None

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        self._budget.spend(_elements((state, *state) if type(state) is tuple and len(state) == 2 else (state,)))
        if type(target) is Pending:
            value = self._stack[-1] = target.finish(state)
            self._memo.update(dict.fromkeys(target.places, value))
        elif type(target) is Record:
            target.state = state
        elif not isinstance(target, Leaf | dict):  # attributes of a tensor or of an OrderedDict are dropped
            raise Unreadable(f'its pickle sets attributes of {described(target)}')


def _elements(values: tuple) -> int:
    return sum(len(value) for value in values if isinstance(value, PLAIN_CONTAINERS))


def checked_key(value: Any) -> Any:
    """Return a value that is a key of a dictionary or a member of a set, unchanged.

    Raises:
        Unreadable: the value is mutable, nested, or so large that its hash or a comparison takes long.
    """
    parts = value if type(value) is tuple else (value,)
    length = sum(len(part) for part in parts if isinstance(part, str | bytes))
    if len(parts) > MOST_IN_A_KEY or length > LONGEST_KEY or not all(map(_is_plain_key, parts)):
        raise Unreadable(f'its pickle has an unsuitable key, {described(value)}')
    return value


def _is_plain_key(value: Any) -> bool:
    if isinstance(value, int):
        # Any number of integers beyond 64 bits can share one hash, and a dictionary of them takes quadratic time.
        return -(2**63) <= value < 2**64
    return not isinstance(value, (*PLAIN_CONTAINERS, bytearray))
