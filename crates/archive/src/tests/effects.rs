//! Each rule of the table in `effects.rs`, alone.

use super::super::Effects;
use super::{entries, inspect_bytes, module_pickle, zipped};

/// Effects of a `forward` with this body, one statement a line.
fn of(body: &str) -> Effects {
    let mut code = "class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n".to_owned();
    for line in body.lines() {
        code += &format!("    {line}\n");
    }
    in_code(&code)
}

fn in_code(code: &str) -> Effects {
    inspect_bytes(&zipped(&entries(code, module_pickle(b"")))).unwrap().effects
}

const NONE: Effects =
    Effects { assigns_attributes: false, mutates_in_place: false, mutates_containers: false };
const ASSIGNS: Effects = Effects { assigns_attributes: true, ..NONE };
const IN_PLACE: Effects = Effects { mutates_in_place: true, ..NONE };
const CONTAINERS: Effects = Effects { mutates_containers: true, ..NONE };
const ITEMS: Effects = Effects { mutates_in_place: true, mutates_containers: true, ..NONE };

fn check(cases: &[(&str, Effects)]) {
    for (body, expected) in cases {
        assert_eq!(of(body), *expected, "{body}");
    }
}

#[test]
fn harmless_code_has_no_effects() {
    check(&[
        ("return x", NONE),
        ("y = torch.add(x, 1, alpha=2)\nreturn torch.relu(y)", NONE),
        (
            "y = torch.zeros([1, 2], dtype=6, layout=None, device=torch.device(\"cpu\"), pin_memory=False)",
            NONE,
        ),
        ("a, b, = torch.max(x, 0)", NONE),
        ("while bool(torch.gt(torch.sum(x), 0)):\n  y = torch.sub(x, 1)", NONE),
        ("for i in range(torch.len(x)):\n  y = x[i]", NONE),
        ("y = annotate(List[int], [])", NONE),
        ("y = self.layer\nz = getattr(self, \"0\")", NONE),
        ("y = (self).forward(x, )", NONE),
        ("ops.prim.RaiseException(\"x.add_(1); y.z = 3\", \"builtins.ValueError\")", NONE),
        ("# self.y = torch.add_(x, 1)", NONE),
        ("y = torch.linear(x, CONSTANTS.c0, CONSTANTS.c1)", NONE),
        ("y = x.relu()", NONE),
        ("y = torch.add(x, 1.0000000000000001e-05)", NONE),
        ("y = torch.__isnot__(x, None)", NONE),
    ]);
}

#[test]
fn loops_are_seen_in_any_code() {
    let loops = |body: &str| {
        let code =
            format!("class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    {body}\n");
        inspect_bytes(&zipped(&entries(&code, module_pickle(b"")))).unwrap().loops
    };
    assert!(loops("while bool(torch.gt(torch.sum(x), 0)):\n      y = torch.sub(x, 1)"));
    assert!(loops("if b:\n      for i in range(torch.len(x)):\n        y = x[i]"));
    assert!(loops("\"unterminated"), "what cannot be read may loop");
    assert!(!loops("# for x in y:\n    format = \"for x in y: while\"\n    y = torch.relu(x)"));
}

#[test]
fn attribute_assignments_are_found() {
    check(&[
        ("self.y = x", ASSIGNS),
        ("self.y, z = x, x", ASSIGNS),
        ("z = self.y = x", ASSIGNS),
        ("if True: self.y = x", ASSIGNS),
        ("z = 1; self.y = x", ASSIGNS),
        ("self.y : int = 3", ASSIGNS),
        ("(self).y = x", ASSIGNS),
        ("self.\\\ny = x", ASSIGNS),
        ("setattr(self, \"y\", x)", Effects::UNKNOWN),
        ("for self.y in [1, 2]:\n  pass", Effects::UNKNOWN),
        ("with x as self.y:\n  pass", Effects::UNKNOWN),
    ]);
}

#[test]
fn writes_to_tensors_are_found() {
    check(&[
        ("y = torch.add_(x, 1)", IN_PLACE),
        ("torch.relu_(x)", IN_PLACE),
        ("torch.copy_(x, x)", IN_PLACE),
        ("ops.aten.zero_(x)", IN_PLACE),
        ("x.add_(1)", IN_PLACE),
        ("(x).mul_(2)", IN_PLACE),
        ("f = torch.add_", IN_PLACE),
        ("f = x.add_", IN_PLACE),
        ("torch.__iand__(x, x)", IN_PLACE),
        ("torch.add(x, x, out=x)", IN_PLACE),
        ("torch.max(x, 0, max=x, max_values=x)", IN_PLACE),
        ("torch.add(x, x, alpha=torch.add(x, x, out=x))", IN_PLACE),
        ("torch.set_data(x, x)", Effects::UNKNOWN),
        ("x[0] = 1", ITEMS),
        ("x += 1", ITEMS),
        ("x @= x", ITEMS),
        ("x.data += 1", Effects::UNKNOWN),
    ]);
}

#[test]
fn norms_write_their_statistics_unless_they_are_frozen() {
    check(&[
        ("y = torch.batch_norm(x, w, b, m, v, False, 0.1, 1e-05, True)", NONE),
        ("y = torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-05, True)", NONE),
        ("y = torch.batch_norm(x, w, b, m, v, True, 0.1, 1e-05, True)", IN_PLACE),
        ("y = torch.batch_norm(x, w, b, m, v, training, 0.1, 1e-05, True)", IN_PLACE),
        ("y = torch.batch_norm(x, f(a, b), [1, False], m, v, True, 0.1)", Effects::UNKNOWN),
        ("y = torch.batch_norm(torch.add(x, 1), [1, False], b, m, v, True, 0.1)", IN_PLACE),
        ("y = torch.batch_norm(x, w, b, m, v)", IN_PLACE),
        ("y = torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-05, True)", NONE),
        ("y = torch.instance_norm(x, w, b, m, v, True, 0.1, 1e-05, True)", IN_PLACE),
        ("f = torch.batch_norm", IN_PLACE),
        ("y = torch.cudnn_batch_norm(x, w, b, m, v, True, 0.1, 1e-05)", Effects::UNKNOWN),
    ]);
}

#[test]
fn changes_of_lists_and_dicts_are_found() {
    check(&[
        ("y = torch.append(l, x)", CONTAINERS),
        ("torch._set_item(d, \"z\", x)", CONTAINERS),
        ("l.append(x)", CONTAINERS),
        ("f = l.append", CONTAINERS),
        ("torch.insert(l, 0, x)", CONTAINERS),
        ("torch.pop(l)", CONTAINERS),
        ("torch.extend(l, l)", CONTAINERS),
        ("torch.clear(l)", CONTAINERS),
        ("torch.sort(l)", CONTAINERS),
        ("torch.Delete(d, \"a\")", CONTAINERS),
        ("torch.update(d, d)", CONTAINERS),
        ("del d[\"a\"]", CONTAINERS),
        ("d[\"a\"] = x", ITEMS),
        ("l += [x]", ITEMS),
    ]);
}

#[test]
fn what_is_not_known_counts_as_everything() {
    for body in [
        "y = ops.mine.custom(x)",
        "y = ops.quantized.linear(x, w)",
        "y = torch.no_such_operator(x)",
        "y = torch.nn.functional.relu(x)",
        "y = (x).no_such_method()",
        "y = __torch__.missing(x)",
        "_0 = __torch__.missing\ny = _0(x)",
        "y = g(x)",
        "y = f[0](x)",
        "y = (f)(x)",
        "f = fork",
        "f = fork(g, x)",
        "y = __torch__.torch.classes.mine.Thing.__new__(x)",
        "y = b\"bytes\"",
        "y = x if 1else-x.add_(1)",
        "y = \"never closed",
        "y = (x",
        "y = x)",
        "\ty = x",
        "y = x\rz = 1",
    ] {
        assert_eq!(of(body), Effects::UNKNOWN, "{body}");
    }
    assert_eq!(
        in_code(
            "class M(Module):\n  t : __torch__.torch.classes.mine.Thing\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n"
        ),
        Effects::UNKNOWN
    );
}

#[test]
fn all_code_counts_wherever_it_stands() {
    let forward = "class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    for (more, expected) in [
        ("  def unused(self: __torch__.M) -> NoneType:\n    self.y = 1\n", ASSIGNS),
        ("class Other(Module):\n  def f(self: __torch__.Other) -> NoneType:\n    self.y = 1\n", ASSIGNS),
        ("def f(x: Tensor) -> Tensor:\n  return torch.add_(x, 1)\n", IN_PLACE),
        ("def f(x: Tensor) -> Tensor: return torch.add_(x, 1)\n", IN_PLACE),
        ("  def g(self: __torch__.M, x: Tensor) -> Tensor: return torch.add_(x, 1)\n", IN_PLACE),
        ("class Color(Enum):\n  RED = torch.add_(1, 1)\n", IN_PLACE),
        ("class M(Module):\n  pass\n", Effects::UNKNOWN),
        (
            "def f(x: Tensor) -> Tensor:\n  return x\ndef g(x: Tensor) -> Tensor:\n  _0 = __torch__.f\n  return _0(x, )\n",
            NONE,
        ),
    ] {
        assert_eq!(in_code(&format!("{forward}{more}")), expected, "{more}");
    }
    let mut all = entries(forward, module_pickle(b""));
    all.push(super::stored("m/CODE/other.PY", "def f(x: Tensor) -> Tensor:\n  return torch.add_(x, 1)\n"));
    assert_eq!(inspect_bytes(&zipped(&all)).unwrap().effects, IN_PLACE, "libtorch ignores case in names");
    all[4] = super::stored("m/code/other.py", b"\xff\xfe");
    assert_eq!(inspect_bytes(&zipped(&all)).unwrap().effects, Effects::UNKNOWN);
}
