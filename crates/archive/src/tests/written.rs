//! What is said of archives that torch 2.13 wrote, against what torch itself says of them.

use super::super::{ArchiveInfo, Effects, TypeExpr, inspect};
use super::testdata;

fn read(name: &str) -> ArchiveInfo {
    inspect(&testdata(name)).unwrap()
}

fn error(name: &str) -> String {
    inspect(&testdata(name)).unwrap_err().to_string()
}

/// `name dtype [sizes]`, as `make.py`'s models print them in Python.
fn tensors(list: &[super::super::TensorInfo]) -> Vec<String> {
    list.iter().map(|tensor| format!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape)).collect()
}

#[test]
fn parameters_and_buffers_are_those_of_torch_in_its_order() {
    let info = read("net.pt");
    assert_eq!(
        tensors(&info.parameters),
        [
            "tied float32 [2, 2]",
            "tied_too float32 [2, 2]",
            "small float16 [2]",
            "brain bfloat16 [2]",
            "a.linear.weight float32 [3, 3]",
            "a.linear.bias float32 [3]",
            "a.norm.weight float32 [3]",
            "a.norm.bias float32 [3]",
            "b.linear.weight float32 [3, 3]",
            "b.linear.bias float32 [3]",
            "b.norm.weight float32 [3]",
            "b.norm.bias float32 [3]",
            "layers.0.weight float32 [3, 3]",
            "layers.0.bias float32 [3]",
            "layers.1.weight float32 [3, 3]",
            "layers.1.bias float32 [3]",
        ]
    );
    assert_eq!(
        tensors(&info.buffers),
        [
            "count int64 []",
            "passing float32 [2]",
            "bytes int8 [4]",
            "mask bool [4]",
            "view float32 [2, 2]",
            "empty float32 [0, 3]",
            "a.norm.running_mean float32 [3]",
            "a.norm.running_var float32 [3]",
            "a.norm.num_batches_tracked int64 []",
            "b.norm.running_mean float32 [3]",
            "b.norm.running_var float32 [3]",
            "b.norm.num_batches_tracked int64 []",
        ]
    );
}

#[test]
fn shared_memory_is_named_and_counted_once() {
    let info = read("net.pt");
    let shared: Vec<_> = info.parameters.iter().filter_map(|tensor| tensor.shared_with.as_deref()).collect();
    assert_eq!(shared, ["tied", "layers.0.weight"]);
    // tied 16, small 4, brain 4, two blocks of 36 + 3 × 12, and layers of 36 + 2 × 12.
    assert_eq!(info.parameter_bytes(), 16 + 4 + 4 + 2 * (36 + 36) + 36 + 24);
    assert_eq!(info.parameter_count(), 4 + 2 + 2 + 2 * 18 + 15);
    assert_eq!(info.buffer_bytes(), 8 + 8 + 4 + 4 + 16 + 2 * (12 + 12 + 8));
    assert_eq!(info.tensor_bytes(), info.parameter_bytes() + info.buffer_bytes());
    let view = info.buffers.iter().find(|tensor| tensor.name == "view").unwrap();
    assert_eq!((view.bytes, view.offset), (16, 4));
}

#[test]
fn the_signature_is_complete() {
    let info = read("net.pt");
    let forward = info.forward.unwrap();
    let arguments: Vec<_> = forward
        .arguments
        .iter()
        .map(|argument| {
            format!("{}: {}{}", argument.name, argument.ty, if argument.has_default { "=" } else { "" })
        })
        .collect();
    assert_eq!(
        arguments,
        [
            "x: Tensor",
            "lengths: Optional[Tensor]=",
            "n: int=",
            "factor: float=",
            "flag: bool=",
            "mode: str=",
            "extra: Optional[Dict[str, Tensor]]=",
            "window: Tuple[int, int]=",
            "device: Optional[Device]=",
        ]
    );
    let fields = vec![
        ("scores".to_owned(), TypeExpr::Tensor),
        ("label".to_owned(), TypeExpr::Optional(Box::new(TypeExpr::Tensor))),
    ];
    assert_eq!(forward.returns, TypeExpr::NamedTuple { name: "Out".to_owned(), fields });
    assert!(forward.returns.is_made_of_tensors());
    assert_eq!(info.methods, ["reset", "helper"]);
}

#[test]
fn the_rest_of_a_scripted_module() {
    let info = read("net.pt");
    assert_eq!(info.class_name, "Net");
    assert_eq!((info.format_version, info.torch_version.as_deref()), (Some(3), Some("2.1 or newer")));
    assert_eq!(info.byte_order.as_deref(), Some("little"));
    assert_eq!(info.serialization_id.as_ref().map(String::len), Some(40));
    assert_eq!(info.extra_files, ["a/b.json", "info.txt"]);
    assert_eq!(info.training, Some(true));
    let types: Vec<_> = info.attributes.iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
    assert_eq!(
        types,
        [
            "training: bool",
            "_is_full_backward_hook: NoneType",
            "state: List[Tensor]",
            "cache: Dict[str, Tensor]",
            "title: str",
            "large: int",
            "negative: int",
            "mixed: Tuple[int, float, str]",
            "ints: List[int]",
            "device: Device",
            "size: Final[int]",
        ]
    );
    assert_eq!(info.operators.get("aten::linear"), Some(&1));
    assert_eq!(info.operators.get("aten::add_"), Some(&4));
    assert_eq!(info.effects, Effects::UNKNOWN);
}

#[test]
fn a_traced_module_in_evaluation_has_no_effects() {
    let info = read("traced.pt");
    assert_eq!(info.class_name, "torch.nn.modules.container.Sequential");
    assert_eq!(info.forward.unwrap().returns.to_string(), "Tuple[Tensor, Tuple[Tensor, Tensor]]");
    assert_eq!(tensors(&info.parameters)[4], "4.weight_ih_l0 float32 [8, 8]");
    assert_eq!(tensors(&info.buffers)[2], "1.num_batches_tracked int64 []");
    assert_eq!(info.effects, Effects::default());
    assert_eq!(info.training, Some(false));
    assert!(
        info.operators.contains_key("aten::_convolution") && info.operators.contains_key("prim::NumToTensor")
    );
}

#[test]
fn a_frozen_module_has_constants_instead_of_parameters() {
    let info = read("frozen.pt");
    assert!(info.parameters.is_empty() && info.buffers.is_empty());
    assert_eq!(tensors(&info.constants), ["c0 float32 [3, 3]", "c1 float32 [3]"]);
    assert_eq!(info.tensor_bytes(), 48);
    assert_eq!((info.class_name.as_str(), info.training), ("Block", None));
    assert_eq!(info.effects, Effects::default());
}

#[test]
fn a_type_without_a_name_here_is_spelled_out() {
    let forward = read("union.pt").forward.unwrap();
    assert_eq!(forward.returns.to_string(), "Union[Tensor, int]");
    assert!(!forward.returns.is_made_of_tensors());
}

#[test]
fn what_is_no_torchscript_says_what_it_is() {
    assert_eq!(
        error("state_dict.pt"),
        "a torch.save archive (a state dict, or a module pickled as a Python object), not TorchScript: \
         save it with torch.jit.save(torch.jit.script(model), ...)"
    );
    assert!(error("exported.pt2").starts_with("a torch.export archive (PT2), not TorchScript: "));
    assert!(error("legacy.pt").contains("a pickle of torch.save's format before 1.6"));
    assert!(error("nowhere.pt").ends_with("nowhere.pt does not exist: check the path"));
    assert!(error("").contains("a directory"));
}
