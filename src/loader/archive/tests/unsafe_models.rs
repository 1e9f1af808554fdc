//! Archives that are whole and can be read, and whose code or pickles ask for what a model does not need. Each is found,
//! with its place; ordinary models are not.

use super::super::inspect;
use super::super::safety::{Danger, Finding};
use super::{Stored, entries, identity, inspect_bytes, key, module_pickle, stored, testdata, zipped};

const HEAD: &str = "class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n";

fn findings(all: &[Stored]) -> Vec<Finding> {
    inspect_bytes(&zipped(all)).unwrap().findings
}

fn code(statement: &str) -> Vec<Finding> {
    findings(&entries(&format!("{HEAD}    {statement}\n    return x\n"), module_pickle(b"")))
}

#[test]
fn archives_of_torch_have_no_findings() {
    for name in ["net.pt", "traced.pt", "frozen.pt", "union.pt"] {
        assert_eq!(inspect(&testdata(name)).unwrap().findings, [], "{name}");
    }
    assert_eq!(findings(&identity(b"")), []);
}

/// Every way to write an operator's name that libtorch follows.
#[test]
fn an_operator_is_found_however_it_is_reached() {
    for statement in [
        "y = torch.from_file(\"/etc/passwd\", True, 10)",
        "y = ops.aten.from_file(\"/etc/passwd\")",
        "y = \"/etc/passwd\".from_file(True, 10)",
        "f = torch.from_file",
        "f = x.from_file",
        "f = getattr(\"/etc/passwd\", \"from_file\")",
        "y = [f for f in [x]][0].from_file()",
        "y = (x if True else x).from_file()",
        "y = x.a.b.from_file",
        "if torch.gt(x, 0): torch.from_file(\"/etc/passwd\")",
    ] {
        let found = code(statement);
        let named =
            found.iter().any(|finding| finding.what == "aten::from_file" && finding.danger == Danger::Files);
        assert!(named, "{statement}: {found:?}");
        assert_eq!(found[0].place, "code/__torch__.py:3", "{statement}");
    }
}

#[test]
fn what_cannot_be_followed_is_found_instead() {
    for statement in [
        "t = torch",
        "o = ops.aten",
        "f = getattr(x, \"from_\" \"file\")",
        "f = getattr(x, \"\\x66rom_file\")",
    ] {
        let found = code(statement);
        assert!(found.iter().any(|finding| finding.danger == Danger::Unreadable), "{statement}: {found:?}");
    }
    let latin = [HEAD.as_bytes(), b"    return x # \xe9\n"].concat();
    let mut all = identity(b"");
    all.push(stored("m/code/__torch__/more.py", latin));
    all.push(stored("m/code/__torch__/other.py", "def f(x:\n"));
    let found = findings(&all);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|finding| finding.danger == Danger::Unreadable), "{found:?}");
    let places: Vec<_> = found.iter().map(|finding| finding.place.as_str()).collect();
    assert!(places.contains(&"code/__torch__/more.py"), "{places:?}");
}

#[test]
fn each_danger_has_its_reason() {
    for (statement, what, danger) in [
        ("torch.save(x, \"/tmp/x\")", "aten::save", Danger::Files),
        ("ops.debugprims.load_tensor(\"x\")", "debugprims::load_tensor", Danger::Files),
        ("ops.mycompany.run(\"rm -rf /\")", "mycompany::run", Danger::Namespace),
        ("ops.c10d.send([x], x)", "c10d::send", Danger::Distributed),
        ("ops.prim.rpc_async(\"w\", x)", "prim::rpc_async", Danger::Distributed),
        ("ops.prim.PythonOp(x)", "prim::PythonOp", Danger::Python),
        ("f = fork(self.g, x)", "prim::fork", Danger::Tasks),
        ("y = torch.wait(x)", "aten::wait", Danger::Tasks),
        ("torch.manual_seed(1)", "aten::manual_seed", Danger::Process),
        ("ops.profiler._record_function_enter(\"x\")", "profiler::_record_function_enter", Danger::Process),
        ("y = torch.as_strided(x, [9], [1])", "aten::as_strided", Danger::Memory),
        ("y = x.set_(x)", "aten::set_", Danger::Memory),
        ("y = ops.prim.id(x)", "prim::id", Danger::Memory),
        ("y = torch.sparse_coo_tensor(x, x)", "aten::sparse_coo_tensor", Danger::Sparse),
        ("y = ops.quantized.linear(x, x, 1., 0)", "quantized::linear", Danger::Quantized),
        (
            "y = torch.embedding_dense_backward(x, x, 1, 1, False)",
            "aten::embedding_dense_backward",
            Danger::Training,
        ),
        ("y = torch.mkldnn_linear(x, x)", "aten::mkldnn_linear", Danger::Vendor),
        ("y = torch._test_check_tensor(x)", "aten::_test_check_tensor", Danger::Internal),
        ("y = torch.load_library(\"x.so\")", "aten::load_library", Danger::Unknown),
        ("y = x.numpy()", "aten::numpy", Danger::Unknown),
        ("y = __torch__.not_here(x)", "__torch__.not_here", Danger::Unknown),
        (
            "c = __torch__.torch.classes.dist_rpc.WorkerInfo(\"a\", 1)",
            "__torch__.torch.classes.dist_rpc.WorkerInfo",
            Danger::CustomClass,
        ),
    ] {
        let found = code(statement);
        let seen: Vec<_> = found.iter().map(|finding| (finding.what.as_str(), finding.danger)).collect();
        assert_eq!(seen, [(what, danger)], "{statement}");
    }
}

#[test]
fn a_class_of_cpp_is_found_in_declarations_and_pickles_too() {
    let class = "__torch__.torch.classes.quantized.Conv2dPackedParamsBase";
    let declared = entries(&format!("class M(Module):\n  p : {class}\n{}", &HEAD[17..]), module_pickle(b""));
    let mut with_body = declared;
    with_body[1] = stored(
        "m/code/__torch__.py",
        format!("class M(Module):\n  p : {class}\n{}    return x\n", &HEAD[17..]),
    );
    assert_eq!(findings(&with_body)[0].what, class);

    let object = b"c__torch__.torch.classes.quantized\nConv2dPackedParamsBase\n)\x81)b";
    let found = findings(&identity(&[key("p"), object.to_vec()].concat()));
    assert_eq!((found[0].what.as_str(), found[0].place.as_str()), (class, "data.pkl"));
    assert_eq!(found[0].danger, Danger::CustomClass);
}

#[test]
fn pickles_that_name_more_than_tensors_are_found() {
    for (value, what) in [
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R".as_slice(), "os.system"),
        (b"cposix\nsystem\nX\x02\0\0\0ls\x85R", "posix.system"),
        (b"cbuiltins\neval\nX\x01\0\0\x001\x85R", "builtins.eval"),
        (b"ctorch.serialization\nload\nX\x01\0\0\x00x\x85R", "torch.serialization.load"),
    ] {
        let found = findings(&identity(&[key("w"), value.to_vec()].concat()));
        assert_eq!((found[0].what.as_str(), found[0].danger), (what, Danger::Global));
        let mut in_constants = identity(b"");
        in_constants[2] = stored("m/constants.pkl", [b"\x80\x02", value, b"\x85."].concat());
        let found = findings(&in_constants);
        assert_eq!((found[0].what.as_str(), found[0].place.as_str()), (what, "constants.pkl"));
        let mut in_lines = identity(b"");
        in_lines.push(stored("m/code/__torch__.py.debug_pkl", [b"\x80\x02", value, b"\x85."].concat()));
        assert_eq!(findings(&in_lines)[0].place, "code/__torch__.py.debug_pkl");
    }
}

/// A method of that name in the archive is no excuse: libtorch calls the operator where the value is a text.
#[test]
fn a_decoy_does_not_hide_an_operator() {
    let decoy = "  def from_file(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let all = entries(
        &format!("{HEAD}    y = \"/etc/passwd\".from_file()\n    return x\n{decoy}"),
        module_pickle(b""),
    );
    assert_eq!(findings(&all)[0].what, "aten::from_file");
    // But the archive's own methods may be called what no operator is called.
    let own = "  def my_layer(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let all =
        entries(&format!("{HEAD}    y = (self).my_layer(x, )\n    return x\n{own}"), module_pickle(b""));
    assert_eq!(findings(&all), []);
}

/// All of these end a process of libtorch 2.13 with its usual stacks.
#[test]
fn code_that_nests_too_deep_is_found() {
    let n = 20_000;
    for statement in [
        format!("y = {}x{}", "(".repeat(n), ")".repeat(n)),
        format!("y = {}1{}", "[".repeat(n), "]".repeat(n)),
        format!("y = x{}", " + x".repeat(n)),
        format!("y = x{}", ".neg()".repeat(n)),
        format!("y = {}True", "not ".repeat(n)),
        format!("y = {}2", "1 if True else ".repeat(n)),
    ] {
        assert!(
            code(&statement).iter().any(|finding| finding.danger == Danger::Nesting),
            "{}",
            &statement[..20]
        );
    }
    let functions: String = (0..n)
        .map(|i| format!("def f{i}(x: Tensor) -> Tensor:\n  return __torch__.f{}(x, )\n", i + 1))
        .collect();
    let last = format!("def f{n}(x: Tensor) -> Tensor:\n  return x\n");
    let all = entries(&format!("{HEAD}    return __torch__.f0(x, )\n{functions}{last}"), module_pickle(b""));
    let found = findings(&all);
    assert_eq!((found.len(), found[0].danger), (1, Danger::Nesting), "{found:?}");
}

#[test]
fn findings_are_bounded_and_the_worst_comes_first() {
    let many: String = (0..5000).map(|i| format!("    y = ops.n{i}.x(x)\n")).collect();
    let all = entries(
        &format!("{HEAD}    y = torch.as_strided(x, [1], [1])\n{many}    return x\n"),
        module_pickle(b""),
    );
    let found = findings(&all);
    assert_eq!(found.len(), 200);
    assert!(found.is_sorted_by_key(|finding| finding.severity));
    assert_eq!(found.last().map(|finding| finding.danger), Some(Danger::Memory));
}
