//! What keeps state and what does not, one small `forward` each, as torch writes them.

use super::{entries, inspect_bytes, key, module_pickle, stored, tensor, zipped};

/// A module with a buffer `b`, a list `st`, a flag `flag` that is false, a number `n` of 3, a name `mode` of `"mean"`, and a
/// child `sub` that has a buffer `m` and is in training as it was saved.
fn module(body: &str, more: &str) -> String {
    let mut code = "class M(Module):
  __parameters__ = []
  __buffers__ = [\"b\", ]
  b : Tensor
  st : List[Tensor]
  d : Dict[str, Tensor]
  flag : bool
  n : int
  mode : str
  training : bool
  sub : __torch__.Sub
  def forward(self: __torch__.M,
    x: Tensor,
    y: Optional[Tensor]=None) -> Tensor:
"
    .to_owned();
    for line in body.lines() {
        code += &format!("    {line}\n");
    }
    code += more;
    code += "class Sub(Module):
  __parameters__ = []
  __buffers__ = [\"m\", ]
  m : Tensor
  training : bool
  def forward(self: __torch__.Sub, x: Tensor) -> Tensor:
    m = self.m
    return torch.add(x, m)
  def update(self: __torch__.Sub, x: Tensor) -> Tensor:
    m = self.m
    _0 = torch.copy_(m, x)
    return m
  def buffer(self: __torch__.Sub) -> Tensor:
    m = self.m
    return m
def same(x: Tensor) -> Tensor:
  return x
def write(x: Tensor, really: bool=True) -> Tensor:
  if really:
    _0 = torch.add_(x, 1)
  else:
    pass
  return x
def put(l: List[Tensor], x: Tensor) -> NoneType:
  _0 = torch.append(l, x)
  return None
class Box:
  inner : Tensor
  def __init__(self: __torch__.Box, x: Tensor) -> NoneType:
    self.inner = x
    return None
  def clear(self: __torch__.Box) -> NoneType:
    inner = self.inner
    _0 = torch.zero_(inner)
    return None
class Pair(NamedTuple):
  one : Tensor
  two : Tensor
";
    code
}

fn pickle() -> Vec<u8> {
    let pair = |name: &str, value: &[u8]| [key(name), value.to_vec()].concat();
    let sub = [
        b"c__torch__\nSub\n)\x81}(".to_vec(),
        pair("m", &tensor(1, &[1], &[1], 0)),
        pair("training", b"\x88"),
        b"ub".to_vec(),
    ]
    .concat();
    module_pickle(
        &[
            pair("b", &tensor(1, &[1], &[1], 0)),
            pair("st", b"]"),
            pair("d", b"}"),
            pair("flag", b"\x89"),
            pair("n", b"K\x03"),
            pair("mode", &key("mean")),
            pair("training", b"\x88"),
            pair("sub", &sub),
        ]
        .concat(),
    )
}

fn found(body: &str, more: &str) -> (Option<String>, Option<String>) {
    let mut all = entries(&module(body, more), pickle());
    all.push(stored("m/data/0", [0; 4]));
    let info = inspect_bytes(&zipped(&all)).unwrap();
    (info.state.map(|seen| seen.to_string()), info.trains.map(|seen| seen.to_string()))
}

/// What makes it one that keeps state.
fn state(body: &str) -> Option<String> {
    found(body, "").0
}

#[test]
fn what_the_call_makes_for_itself_is_no_state() {
    for body in [
        "return torch.relu_(x)",
        "outs = annotate(List[Tensor], [])\n_0 = torch.append(outs, x)\nreturn torch.cat(outs)",
        "out = {\"a\": x}\ntorch._set_item(out, \"b\", x)\ntorch.Delete(out, \"a\")",
        "b = self.b\nz = torch.zeros([1])\n_0 = torch.copy_(z, b)\nreturn z",
        "b = self.b\nz = torch.add(b, x)\n_0 = torch.mul_(z, 2)\nreturn z",
        "b = self.b\nz = torch.add(torch.select(b, 0, 0), torch.select(b, 0, 0))\n_0 = torch.copy_(torch.select(z, 0, 0), x)",
        "b = self.b\nz = torch.clone(b)\n_0 = torch.mul_(z, 2)",
        "b = self.b\nl = [b]\n_0 = torch.append(l, x)\nreturn torch.cat(l)",
        "b = self.b\nl = [x, b]\n_0 = torch.add_(l[0], 1)",
        "b = self.b\n_0 = (x, b)\none, two, = _0\n_1 = torch.add_(one, 1)",
        "b = self.b\n_0 = torch.append([b], b)",
        "b = self.b\nz = torch.add(x, x, out=torch.zeros([1]))\nreturn torch.add(z, b)",
        "_0 = __torch__.write\nreturn _0(torch.relu(x), True, )",
        "_0 = __torch__.write(self.b, False, )",
        "sub = self.sub\nreturn (sub).forward(x, )",
        "training = self.training\nif training:\n  b = self.b\n  _0 = torch.add_(b, 1)\nelse:\n  pass\nreturn x",
        "flag = self.flag\nif torch.__not__(flag):\n  z = torch.zeros([1])\nelse:\n  z = self.b\n_0 = torch.add_(z, 1)",
        "n = self.n\nif torch.eq(n, 4):\n  z = self.b\nelse:\n  z = torch.zeros([1])\n_0 = torch.add_(z, 1)",
        "mode = self.mode\nif torch.ne(mode, \"mean\"):\n  z = self.b\nelse:\n  z = torch.zeros([1])\n_0 = torch.add_(z, 1)",
        "z = torch.zeros([3])\nfor i in range(3):\n  _0 = torch.copy_(torch.select(z, 0, i), x)\nreturn z",
        "_0 = __torch__.Box.__new__(__torch__.Box)\n_1 = (_0).__init__(x, )\n_2 = (_0).clear()",
        "p = __torch__.Pair(x, x)\n_0 = torch.zero_(p.one)",
        "b = self.b\nvalues, indices, = torch.sort(b, 0)\nreturn values",
        "b = self.b\ny0 = torch.batch_norm(x, None, None, b, b, False, 0.1, 1e-05, True)",
        "y0 = torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-05, True)",
        "b = self.b\nx0 = torch.clamp(x, min=b)",
        "if torch.__isnot__(y, None):\n  y0 = unchecked_cast(Tensor, y)\n  _0 = torch.add_(y0, 1)\nelse:\n  pass",
        "ops.prim.RaiseException(\"self.b.add_(1)\", \"builtins.ValueError\")",
        // The first call, which is the warm-up's, sets it for good.
        "flag = self.flag\nif torch.__not__(flag):\n  self.flag = True\nelse:\n  pass",
        "self.n = 3",
    ] {
        assert_eq!(state(body), None, "{body}");
    }
}

#[test]
fn writes_to_what_the_module_keeps_are_found_however_they_come_there() {
    for (body, what) in [
        ("b = self.b\n_0 = torch.copy_(b, x)", "torch.copy_ writes to self.b (code/__torch__.py:16)"),
        ("_0 = torch.add_(self.b, 1)", "torch.add_ writes to self.b"),
        ("b = self.b\n_0 = ops.aten.zero_(b)", "torch.zero_ writes to self.b"),
        ("(self.b).copy_(x)", "torch.copy_ writes to self.b"),
        ("z = torch.view(self.b, [-1])\n_0 = torch.mul_(z, 2)", "self.b"),
        ("z = torch.to(torch.slice(torch.t(self.b), 0, 1), 6)\n_0 = torch.mul_(z, 2)", "self.b"),
        ("z = torch.dropout(self.b, 0.5, False)\n_0 = torch.mul_(z, 2)", "self.b"),
        ("z = torch.meshgrid([x, self.b])\n_0 = torch.mul_(z[0], 2)", "self.b"),
        ("z = torch.add(x, x, out=self.b)", "torch.add writes to self.b"),
        ("b = self.b\nz = torch.add(x, x, out=torch.view(b, [-1]))", "self.b"),
        ("self.b[0] = x", "an assignment writes to self.b"),
        ("b = self.b\nb += x", "an augmented assignment writes to self.b"),
        ("l = [x, self.b]\n_0 = torch.add_(l[1], 1)", "self.b"),
        (
            "l = [self.b, x]\n_0 = torch.pop(l, 0)\n_1 = torch.append(l, x)\n_2 = torch.add_(l[1], 1)",
            "self.b",
        ),
        ("ll = [[x]]\n_0 = ll[0]\n_1 = torch.append(_0, self.b)\n_2 = torch.add_((ll[0])[0], 1)", "self.b"),
        (
            "l = annotate(List[Tensor], [])\n_0 = __torch__.put(l, self.b, )\nfor i in range(torch.len(l)):\n  z = l[i]\n  _1 = torch.zero_(z)",
            "self.b",
        ),
        (
            "e = {\"a\": self.b}\n_0 = torch.items(e)\nfor i in range(1):\n  k, v, = _0[i]\n  _1 = torch.zero_(v)",
            "self.b",
        ),
        (
            "e = {\"a\": x}\ntorch._set_item(e, \"b\", self.b)\nfor v in torch.values(e):\n  _1 = torch.zero_(v)",
            "self.b",
        ),
        ("if bool(x):\n  z = self.b\nelse:\n  z = x\n_0 = torch.add_(z, 1)", "self.b"),
        ("z = x\nfor i in range(2):\n  _0 = torch.add_(z, 1)\n  z = self.b", "self.b"),
        ("z = x\nw = x\nwhile bool(x):\n  _0 = torch.add_(w, 1)\n  w = z\n  z = self.b", "self.b"),
        ("return __torch__.write(self.b, )", "torch.add_ writes to self.b"),
        ("_0 = __torch__.same\n_1 = torch.add_(_0(self.b, ), 1)", "self.b"),
        ("sub = self.sub\nreturn (sub).update(x, )", "torch.copy_ writes to self.sub.m"),
        ("sub = self.sub\nz = (sub).buffer()\n_0 = torch.add_(z, 1)", "self.sub.m"),
        ("_0 = torch.add_(getattr(getattr(self, \"sub\"), \"m\"), 1)", "self.sub.m"),
        (
            "_0 = __torch__.Box.__new__(__torch__.Box)\n_1 = (_0).__init__(self.b, )\n_2 = (_0).clear()",
            "self.b",
        ),
        ("p = __torch__.Pair(x, self.b)\n_0 = torch.zero_(p.two)", "self.b"),
        ("d = {\"a\": x}\nz = torch.get(d, \"b\", self.b)\n_0 = torch.add_(z, 1)", "self.b"),
        ("d = {\"a\": x}\nz = torch.setdefault(d, \"b\", self.b)\n_0 = torch.add_(z, 1)", "self.b"),
        ("one, two, = (x, self.b)\n_0 = torch.zero_(two)", "self.b"),
        ("z, w = x, self.b\n_0 = torch.zero_(w)", "self.b"),
        ("_0 = torch.add_(CONSTANTS.c0, 1)", "the constant c0"),
        ("_0 = torch._foreach_add_([x, self.b], 1)", "self.b"),
        ("z = torch.set_(torch.zeros([1]), self.b)\n_0 = torch.add_(z, 1)", "self.b"),
        (
            "b = self.b\ny0 = torch.batch_norm(x, None, None, b, b, True, 0.1, 1e-05, True)",
            "torch.batch_norm writes to self.b",
        ),
        ("b = self.b\ny0 = torch.batch_norm(x, None, None, b, b, bool(x), 0.1, 1e-05, True)", "self.b"),
        ("def __forked_function():\n  return torch.add_(self.b, 1)\nfut = fork(__forked_function)", "self.b"),
        ("if bool(x):\n  return x\nelse:\n  pass\n_0 = torch.add_(self.b, 1)", "self.b"),
        ("z = x if bool(x) else self.b\n_0 = torch.add_(z, 1)", "self.b"),
        ("with torch.no_grad():\n  _0 = torch.add_(self.b, 1)", ""),
    ] {
        let found = state(body).unwrap_or_else(|| panic!("no state: {body}"));
        assert!(found.contains(what), "{body}\n{found}");
    }
}

#[test]
fn attributes_and_containers_of_the_module_are_state() {
    for (body, what) in [
        ("self.b = x", "the code assigns self.b"),
        ("n = self.n\nself.n = torch.add(n, 1)", "the code assigns self.n"),
        ("sub = self.sub\nsub.m = x", "the code assigns self.sub.m"),
        ("self.n += 1", "self.n"),
        // A constant that not every call sets, or that two places set otherwise.
        ("if bool(x):\n  self.flag = True\nelse:\n  pass", "the code assigns self.flag"),
        ("self.flag = True\nself.flag = False", "the code assigns self.flag"),
        (
            "self.n = 4\nn = self.n\nif torch.eq(n, 4):\n  self.b = x\nelse:\n  pass",
            "the code assigns self.b",
        ),
        ("st = self.st\n_0 = torch.append(st, x)", "torch.append writes to self.st"),
        ("d = self.d\ntorch._set_item(d, \"q\", x)", "torch._set_item writes to self.d"),
        ("st = self.st\ntorch.sort(st)", "torch.sort writes to self.st"),
        ("st = self.st\nz = st[0]\n_0 = torch.add_(z, 1)", "torch.add_ writes to self.st"),
        ("_0 = __torch__.put(self.st, x, )", "torch.append writes to self.st"),
    ] {
        let found = state(body).unwrap_or_else(|| panic!("no state: {body}"));
        assert!(found.contains(what), "{body}\n{found}");
    }
}

#[test]
fn what_cannot_be_followed_counts_as_state_and_says_so() {
    for body in [
        "y0 = ops.mine.custom(x)",
        "y0 = torch.no_such_operator(x)",
        "y0 = __torch__.missing(x, )",
        "y0 = (self).missing(x, )",
        "y0 = __torch__.torch.classes.mine.Thing.__new__(x)",
        "setattr(self, \"b\", x)",
        "y0 = g(x)",
        "del self.d[\"a\"]",
        "while bool(x):\n  break",
        "y0 = [z for z in x]",
        "y0 = lambda: x",
    ] {
        let found = state(body).unwrap_or_else(|| panic!("no state: {body}"));
        assert!(found.contains("torchlane cannot tell: "), "{body}\n{found}");
        assert!(found.contains("code/__torch__.py:"), "{body}\n{found}");
    }
    let lists: String =
        (0..9000).map(|n| format!("l{} = [l{n}, l{n}]\n_{n} = torch.meshgrid(l{n})\n", n + 1)).collect();
    assert!(state(&format!("l0 = [x]\n{lists}")).unwrap().contains("the code is too large"));
    let deep = format!("y0 = {}x{}", "(".repeat(3000), ")".repeat(3000));
    assert!(state(&deep).unwrap().contains("too deep"));
    let calls = "  def again(self: __torch__.M, x: Tensor) -> Tensor:\n    return (self).again(x, )\n";
    assert!(found("return (self).again(x, )", calls).0.unwrap().contains("a function calls itself"));
}

#[test]
fn code_that_is_not_called_does_not_count() {
    let unused = "  def reset(self: __torch__.M) -> NoneType:\n    b = self.b\n    _0 = torch.zero_(b)\n    return None\n";
    assert_eq!(found("return x", unused).0, None);
    let hooked =
        unused.replace("def reset(self: __torch__.M)", "def reset(self: __torch__.M, x: Tuple[Tensor])");
    let code = module("return x", &hooked)
        .replace("  b : Tensor\n", "  b : Tensor\n  __forward_pre_hooks__ = [\"reset\", ]\n");
    let mut all = entries(&code, pickle());
    all.push(stored("m/data/0", [0; 4]));
    let state = inspect_bytes(&zipped(&all)).unwrap().state.unwrap();
    assert_eq!(state.what, "torch.zero_ writes to self.b", "libtorch calls it");
}

#[test]
fn modes_for_training_that_are_built_in_are_found() {
    let trains = |body: &str| found(body, "").1;
    for body in [
        "y0 = torch.dropout(x, 0.5, True)",
        "y0 = torch.dropout(x, p=0.5, train=True)",
        "y0 = torch.feature_dropout_(x, 0.5, True)",
        "b = self.b\ny0 = torch.batch_norm(x, None, None, b, b, True, 0.1, 1e-05, True)",
        "y0, _1, _2, = torch.lstm(x, [x], [x], True, 2, 0.5, True, False, False)",
    ] {
        assert!(
            trains(body).is_some_and(|seen| seen.contains("is in training mode (code/__torch__.py:")),
            "{body}"
        );
    }
    for body in [
        "y0 = torch.dropout(x, 0.5, False)",
        "y0 = torch.dropout(x, 0., True)",
        "training = self.training\ny0 = torch.dropout(x, 0.5, training)",
        "y0 = torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-05, True)",
        "y0, _1, _2, = torch.lstm(x, [x], [x], True, 1, 0.5, True, False, False)",
    ] {
        assert_eq!(trains(body), None, "{body}");
    }
}
