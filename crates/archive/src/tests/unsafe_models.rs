//! Archives that are whole and can be read, and whose code or pickles ask for what a model does not need. Each is found,
//! with its place; ordinary models are not.

use super::super::inspect;
use super::super::safety::{Danger, Finding, Policy, Safety, Severity, Verdict};
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

#[test]
fn numbers_that_libtorch_does_not_check_are_found_and_those_of_exports_are_not() {
    for (statement, what) in [
        ("y = torch.zeros([2], dtype=1000)", "torch.dtype=1000"),
        ("y = torch.zeros([2], dtype=-1)", "torch.dtype=-1"),
        ("y = torch.sum(x, dtype=45)", "torch.dtype=45"),
        ("y = torch.zeros([2], dtype=6, layout=1)", "torch.layout=1"),
        ("y = torch.softmax(x, 0, 1000)", "aten::softmax with dtype 1000"),
        ("y = x.softmax(0, 1000)", "aten::softmax with dtype 1000"),
        ("y = torch.to(x, -1)", "aten::to with dtype -1"),
    ] {
        let found = code(statement);
        let seen: Vec<_> = found.iter().map(|finding| (finding.what.as_str(), finding.danger)).collect();
        assert_eq!(seen, [(what, Danger::Form)], "{statement}");
    }
    for statement in [
        "y = torch.zeros([2], dtype=6, layout=0, device=torch.device(\"cpu\"), pin_memory=False)",
        "y = torch.zeros([2], dtype=None, layout=None)",
        "y = torch.zeros_like(x, dtype=ops.prim.dtype(x))",
        "y = torch.to(x, 15, False, False, None)",
        "y = torch.to(x, torch.device(\"cpu\"), 6, False, False, None)",
        "y = torch.softmax(x, -1)",
        "y = torch.view(x, [-1, 1000])",
    ] {
        assert_eq!(code(statement), [], "{statement}");
    }
}

#[test]
fn heads_must_be_numbers_that_fit() {
    let attention = |width: &str, heads: &str| {
        code(&format!("y = torch._native_multi_head_attention(x, x, x, {width}, {heads}, x, x, x, x)"))
    };
    assert_eq!(attention("16", "4"), []);
    for (width, heads) in [("4", "0"), ("16", "n"), ("0", "1"), ("16", "-1"), ("16", "self.n")] {
        let found = attention(width, heads);
        assert_eq!(
            found.first().map(|finding| finding.danger),
            Some(Danger::Form),
            "{width} {heads}: {found:?}"
        );
    }
}

#[test]
fn a_cast_is_of_what_may_be_none() {
    let cast =
        |statements: &str| code(statements).into_iter().map(|finding| finding.danger).collect::<Vec<_>>();
    for statements in [
        "y = unchecked_cast(Tensor, self.b)",
        "u = annotate(Union[Tensor, List[int]], [1])\n    y = unchecked_cast(List[int], u)",
        "s = annotate(Optional[List[int]], None)\n    y = unchecked_cast(List[int], s)",
        "s = annotate(Optional[List[int]], None)\n    t = s\n    y = unchecked_cast(List[int], t)",
    ] {
        assert_eq!(cast(statements), [], "{statements}");
    }
    for statements in [
        "y = unchecked_cast(List[Tensor], [1, 2])",
        "l = [1, 2]\n    y = unchecked_cast(List[Tensor], l)",
        "l = annotate(Optional[List[int]], [1])\n    y = unchecked_cast(List[Tensor], l)",
        "l = annotate(Optional[List[Tensor]], None)\n    l = [1, 2]\n    y = unchecked_cast(List[Tensor], l)",
        "l = annotate(Optional[List[Tensor]], None)\n    if True: l = [1, 2]\n    y = unchecked_cast(List[Tensor], l)",
        "l = annotate(Optional[List[Tensor]], None)\n    y = [unchecked_cast(List[Tensor], l) for l in [[1], [2]]]",
        "l = annotate(Optional[List[Tensor]], None)\n    a = 1; l = [1, 2]\n    y = unchecked_cast(List[Tensor], l)",
        "y = unchecked_cast(Tuple[int, int], (1,))",
        "u = annotate(Union[List[int], List[Tensor]], [1])\n    y = unchecked_cast(List[Tensor], u)",
        "a = annotate(Any, [1, 2])",
    ] {
        assert!(cast(statements).contains(&Danger::Cast), "{statements}");
    }
}

#[test]
fn an_argument_of_any_type_is_ordinary_while_nothing_reads_it() {
    // As `torch.autocast` is exported, and `torch.no_grad` by other names.
    let context = |arguments: &str, body: &str| {
        let code = format!(
            "class Context:\n  exc_type : int\n  def __exit__(self: __torch__.Context,\n    {arguments}) -> NoneType:\n    \
             {body}\n    return None\nclass M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n"
        );
        let found = findings(&entries(&code, module_pickle(&[])));
        found.iter().any(|finding| finding.danger == Danger::Cast)
    };
    for (arguments, body) in [
        ("exc_type: Any, exc_val: Any,\n    exc_tb: Any", "pass"),
        ("exc_type: Any", "b = self.exc_type"),
        ("exc_type: Any=None, exc_val: Any=None", "pass"),
    ] {
        assert!(!context(arguments, body), "{arguments} {body}");
    }
    for (arguments, body) in [
        ("exc_type: Any", "b = exc_type"),
        ("exc_type: Any", "b = [exc_type, exc_type]"),
        ("exc_type: Any", "if True:\n      self.f(exc_type, )"),
        ("exc_type: Any", "b = (exc_type).c"),
        ("exc_type: Any=None", "b = exc_type"),
        ("exc_type: Any=None, b: int=exc_type", "pass"),
        ("exc_type: Any=[[]]", "pass"),
        ("exc_type: List[Any]", "pass"),
        ("exc_type: Optional[Any]", "pass"),
        ("a: int) -> Tuple[Any, int]:\n    return (1, 2)\n  def f(self: __torch__.Context", "pass"),
    ] {
        assert!(context(arguments, body), "{arguments} {body}");
    }
}

#[test]
fn a_function_within_a_function_is_refused() {
    let inner = "def inner(b: Tensor) -> Tensor:\n      return b\n    ";
    for statements in ["y = x", "l = [1, 2]\n    y = unchecked_cast(List[Tensor], l)"] {
        let found = code(&format!("{inner}{statements}"));
        assert!(found.iter().any(|finding| finding.danger == Danger::Unreadable), "{found:?}");
    }
}

#[test]
fn values_are_of_the_types_that_the_code_declares() {
    let classes = "class Small:\n  a : int\nclass Big:\n  a : int\n  b : Tensor\n  c : Tensor\n\
                   class M(Module):\n  v : TYPE\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let found = |ty: &str, value: &[u8]| {
        let pickle = module_pickle(&[key("v"), value.to_vec()].concat());
        findings(&entries(&classes.replace("TYPE", ty), pickle))
    };
    let small = b"c__torch__\nSmall\n)\x81}X\x01\0\0\0aK\x01sb";
    let listed = [b"]".as_slice(), small, b"a"].concat();
    for (ty, value) in [
        ("__torch__.Small", small.as_slice()),
        ("Optional[__torch__.Small]", b"N"),
        ("List[__torch__.Small]", &listed),
        ("Tuple[int, str]", b"K\x01X\x01\0\0\0a\x86"),
        ("List[int]", b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R"),
        ("Dict[str, int]", b"ctorch.jit._pickle\nrestore_type_tag\n}X\x0e\0\0\0Dict[str, int]\x86R"),
        ("Optional[float]", b"G\0\0\0\0\0\0\0\0"),
    ] {
        assert_eq!(found(ty, value), [], "{ty}");
    }
    for (ty, value) in [
        ("__torch__.Big", small.as_slice()),
        ("Optional[__torch__.Big]", small),
        ("List[__torch__.Big]", &listed),
        ("Tuple[int, str, int]", b"K\x01X\x01\0\0\0a\x86"),
        ("List[Tensor]", b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R"),
        ("Dict[str, int]", b"ctorch.jit._pickle\nrestore_type_tag\n}X\x11\0\0\0Dict[str, Tensor]\x86R"),
        ("Tensor", b"K\x01"),
        ("int", small),
    ] {
        let found = found(ty, value);
        assert_eq!(found.first().map(|finding| finding.danger), Some(Danger::Declared), "{ty}: {found:?}");
    }
}

/// The state of a class of its own, and what its code does with it while the model loads.
#[test]
fn code_that_runs_while_loading_must_end() {
    let text = "class M(Module):\n  v : int\n  def __setstate__(self: __torch__.M, state: Tuple[int]) -> NoneType:\n    BODY\n  \
                def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let found = |body: &str| {
        let pickle = b"\x80\x02c__torch__\nM\n)\x81K\x01\x85b.".to_vec();
        let dangers = findings(&entries(&text.replace("BODY", body), pickle));
        dangers.into_iter().map(|finding| finding.danger).collect::<Vec<_>>()
    };
    assert_eq!(found("self.v = (state)[0]"), []);
    assert_eq!(found("while True:\n      self.v = 1"), [Danger::Endless]);
}

#[test]
fn a_median_of_what_may_be_expanded_is_found() {
    let dangers =
        |statement: &str| code(statement).into_iter().map(|finding| finding.danger).collect::<Vec<_>>();
    let expanded = "e = torch.expand(x, [4, -1])\n    ";
    assert_eq!(dangers(&format!("{expanded}y, i = torch.median(e, 0, False)")), [Danger::Expanded]);
    assert_eq!(dangers(&format!("{expanded}y = e.median(0)")), [Danger::Expanded]);
    assert_eq!(dangers(&format!("{expanded}y = torch.median(e)")), []);
    assert_eq!(dangers("y, i = torch.median(x, 0, False)"), []);
}

/// What ordinary models do is noted, not refused; and not noted where nothing can happen.
#[test]
fn what_ends_the_process_for_some_values_is_noted() {
    for (statement, noted) in [
        ("y = torch.remainder(torch.size(x, 0), torch.size(x, 1))", true),
        ("y = torch.remainder(torch.size(x, 0), 4)", false),
        ("y = torch.remainder(torch.size(x, 0), 0)", true),
        ("y = torch.div(x, x, rounding_mode=\"trunc\")", true),
        ("y = torch.div(x, x, rounding_mode=\"floor\")", false),
        ("y = torch.div(x, x)", false),
        ("torch.sort(l, True)", true),
        ("y, i = torch.sort(x, -1, True)", false),
        ("y, a, b, c = torch.embedding_bag(x, x, x, False, 0)", true),
        ("y, a, b, c = torch.embedding_bag(x, x, x, False, 1)", false),
        ("y = torch.count(\"a\", \"\")", true),
    ] {
        let found = code(statement);
        assert!(found.iter().all(|finding| finding.severity == Severity::Note), "{statement}: {found:?}");
        assert_eq!(found.len(), usize::from(noted), "{statement}");
    }
}

/// A submodule may be called what an operator that is not ordinary is called; a tensor's member may not.
#[test]
fn names_of_attributes_are_their_own() {
    let own = "class M(Module):\n  resize : int\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    n = self.resize\n    return x\n";
    assert_eq!(findings(&entries(own, module_pickle(b""))), []);
    assert_eq!(code("y = x.convolution(x)")[0].danger, Danger::Rare);
}

/// The recipe in docs/security.md, with archives that torch.ao made.
#[test]
fn quantized_models_pass_with_what_the_page_says() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md")).unwrap();
    let block = page.split("```toml\n[safety]").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let lines = block.lines().filter(|line| !line.trim_start().starts_with('#'));
    let allow = lines.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect();
    let safety = Safety { policy: Policy::Strict, allow };
    assert_eq!(safety.problem(), None);
    for name in ["quantized_static.pt", "quantized_linear.pt", "quantized_lstm.pt"] {
        let findings = inspect(&testdata(name)).unwrap().findings;
        assert!(findings.iter().any(|finding| finding.danger == Danger::CustomClass), "{name}: {findings:?}");
        assert_eq!(safety.judge(&findings), Verdict::Serve, "{name}");
    }
}
