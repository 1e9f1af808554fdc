use super::*;
use crate::{Argument, ModelManifest, tensor::HostTensor};

fn signature(kinds: &[(&str, ArgKind, bool)], manifest: &str) -> Arc<Signature> {
    let arguments = kinds
        .iter()
        .map(|(name, kind, has_default)| Argument {
            name: (*name).into(),
            kind: kind.clone(),
            has_default: *has_default,
            skips: 0,
        })
        .collect();
    Arc::new(Signature::new(arguments, &[], &ModelManifest::parse(manifest).unwrap()).unwrap())
}

fn input(name: &str, dtype: DType, shape: &[i64]) -> NamedTensor {
    NamedTensor { name: name.to_owned(), tensor: HostTensor::zeros(dtype, shape.into()).unwrap() }
}

fn reason(result: Result<Binding>) -> Reason {
    result.unwrap_err().reason()
}

#[test]
fn tensors_are_found_by_name() {
    let sig = signature(&[("a", ArgKind::Tensor, false), ("b", ArgKind::Tensor, false)], "");
    let bound = Binding::new(&sig, &[input("b", DType::F32, &[1]), input("a", DType::F32, &[1])], 1).unwrap();
    assert_eq!(bound.args, [Arg::Tensor(1), Arg::Tensor(0)]);
    assert_eq!(reason(Binding::new(&sig, &[input("a", DType::F32, &[1])], 1)), Reason::MissingInput);
    let extra = [input("a", DType::F32, &[1]), input("b", DType::F32, &[1]), input("c", DType::F32, &[1])];
    assert_eq!(reason(Binding::new(&sig, &extra, 1)), Reason::UnknownInput);
    let many: Vec<_> = (0..=MAX_INPUTS).map(|i| input(&i.to_string(), DType::F32, &[0])).collect();
    assert_eq!(reason(Binding::new(&sig, &many, 1)), Reason::BadRequest);
    let twice = [input("a", DType::F32, &[1]), input("a", DType::F32, &[1])];
    assert_eq!(reason(Binding::new(&sig, &twice, 1)), Reason::DuplicateInput);
}

#[test]
fn one_unnamed_tensor_is_enough_for_one_input() {
    let sig = signature(&[("x", ArgKind::Tensor, false)], "");
    assert!(Binding::new(&sig, &[input("", DType::F32, &[1])], 1).is_ok());
}

#[test]
fn declared_types_and_shapes_hold() {
    let sig = signature(
        &[("x", ArgKind::Tensor, false)],
        "[[inputs]]\nname = 'image'\nargument = 'x'\ndtype = 'FP32'\nshape = [-1, 3]",
    );
    assert!(Binding::new(&sig, &[input("image", DType::F32, &[5, 3])], 1).is_ok());
    assert_eq!(reason(Binding::new(&sig, &[input("image", DType::F64, &[5, 3])], 1)), Reason::WrongDatatype);
    assert_eq!(reason(Binding::new(&sig, &[input("image", DType::F32, &[5, 4])], 1)), Reason::WrongShape);
    assert_eq!(reason(Binding::new(&sig, &[input("image", DType::F32, &[3])], 1)), Reason::WrongShape);
    let argument = Binding::new(&sig, &[input("x", DType::F32, &[5, 3])], 1).unwrap_err();
    assert_eq!(argument.message(), "the model has no input 'x': the model takes image (Tensor)");
    assert_eq!(reason(Binding::new(&sig, &[], 1)), Reason::MissingInput);
}

#[test]
fn structures_are_named_by_path() {
    let sig = signature(
        &[
            ("t", ArgKind::Tuple(vec![ArgKind::Tensor, ArgKind::Tensor]), false),
            ("l", ArgKind::List, false),
            ("d", ArgKind::Dict, false),
            ("o", ArgKind::Optional(Box::new(ArgKind::Tensor)), false),
        ],
        "",
    );
    let names = ["t.0", "t.1", "l.0", "l.1", "d.k"];
    let inputs: Vec<_> = names.iter().map(|name| input(name, DType::F32, &[1])).collect();
    let bound = Binding::new(&sig, &inputs, 8).unwrap();
    assert_eq!(
        bound.args,
        [
            Arg::Tuple(vec![Arg::Tensor(0), Arg::Tensor(1)]),
            Arg::List(vec![2, 3]),
            Arg::Dict(vec![("k".to_owned(), 4)]),
            Arg::None
        ]
    );
    assert!(bound.key.is_none(), "lists and dicts are not joined");
}

#[test]
fn a_model_of_one_dict_takes_plain_keys() {
    let sig = signature(&[("d", ArgKind::Dict, false)], "");
    let bound =
        Binding::new(&sig, &[input("u", DType::F32, &[1]), input("d.v", DType::F32, &[1])], 1).unwrap();
    assert_eq!(bound.args, [Arg::Dict(vec![("u".to_owned(), 0), ("v".to_owned(), 1)])]);
}

#[test]
fn declared_keys_of_a_dict_are_tensors_of_their_own() {
    let manifest = "[[inputs]]\nname='left'\nkey='u'\ndtype='FP32'\nshape=[2]\n[[inputs]]\nname='v'\nkey='v'";
    let sig = signature(&[("d", ArgKind::Dict, false)], manifest);
    assert_eq!(sig.tensors().map(|spec| spec.name.as_ref()).collect::<Vec<_>>(), ["left", "v"]);
    let (left, v) = (input("left", DType::F32, &[2]), input("v", DType::I64, &[1]));
    let bound = Binding::new(&sig, &[v.clone(), left.clone()], 1).unwrap();
    assert_eq!(bound.args, [Arg::Dict(vec![("u".to_owned(), 1), ("v".to_owned(), 0)])]);
    assert_eq!(reason(Binding::new(&sig, std::slice::from_ref(&left), 1)), Reason::MissingInput);
    assert_eq!(reason(Binding::new(&sig, &[], 1)), Reason::MissingInput);
    let other = [left, v.clone(), input("w", DType::F32, &[1])];
    assert_eq!(reason(Binding::new(&sig, &other, 1)), Reason::UnknownInput);
    assert_eq!(
        reason(Binding::new(&sig, &[input("left", DType::F32, &[3]), v], 1)),
        Reason::WrongShape,
        "each key has a shape of its own"
    );
    let optional = signature(&[("d", ArgKind::Optional(Box::new(ArgKind::Tensor)), false)], "");
    assert_eq!(Binding::new(&optional, &[], 1).unwrap().args, [Arg::None]);
}

#[test]
fn keys_are_for_dicts() {
    let refused = |kind: ArgKind, text: &str| {
        let argument = Argument { name: "d".into(), kind, has_default: false, skips: 0 };
        let manifest = ModelManifest::parse(text).unwrap();
        Signature::new(vec![argument], &[], &manifest).unwrap_err().to_string()
    };
    let key = "[[inputs]]\nname='u'\nkey='u'";
    assert!(refused(ArgKind::Tensor, key).contains("only Dict[str, Tensor] has keys"));
    let twice = format!("{key}\n[[inputs]]\nname='v'\nkey='u'");
    assert!(refused(ArgKind::Dict, &twice).contains("'v' stands for an argument that another"));
    let both = format!("{key}\n[[inputs]]\nname='d'");
    assert!(refused(ArgKind::Dict, &both).contains("'d' stands for an argument that another"));
}

#[test]
fn what_is_left_out_is_the_models_own_default() {
    let sig = signature(
        &[("x", ArgKind::Tensor, false), ("n", ArgKind::Int, true), ("flag", ArgKind::Bool, true)],
        "",
    );
    let x = input("x", DType::F32, &[1]);
    assert_eq!(Binding::new(&sig, std::slice::from_ref(&x), 1).unwrap().args.len(), 1);
    let given = [x.clone(), input("n", DType::I64, &[])];
    assert_eq!(Binding::new(&sig, &given, 1).unwrap().args, [Arg::Tensor(0), Arg::Int(0)]);
    let flagged = Binding::new(&sig, &[x.clone(), input("flag", DType::Bool, &[1])], 8).unwrap();
    assert_eq!(flagged.args, [Arg::Tensor(0), Arg::Default, Arg::Bool(false)]);
    assert_eq!(
        reason(Binding::new(&sig, &[x.clone(), input("n", DType::F32, &[])], 1)),
        Reason::WrongDatatype
    );
    assert_eq!(reason(Binding::new(&sig, &[x, input("n", DType::I64, &[2])], 1)), Reason::WrongShape);
}

#[test]
fn an_optional_argument_is_its_default_not_none() {
    let optional = || ArgKind::Optional(Box::new(ArgKind::Tensor));
    let kinds = [("x", ArgKind::Tensor, false), ("mask", optional(), true), ("must", optional(), false)];
    let mut sig = (*signature(&kinds, "")).clone();
    let args = |sig: &Signature, names: &[&str]| {
        let inputs: Vec<_> = names.iter().map(|name| input(name, DType::F32, &[1])).collect();
        Binding::new(&Arc::new(sig.clone()), &inputs, 8).unwrap().args
    };
    assert_eq!(args(&sig, &["x"]), [Arg::Tensor(0), Arg::Default, Arg::None]);
    assert_eq!(args(&sig, &["x", "mask"]), [Arg::Tensor(0), Arg::Tensor(1), Arg::None]);
    // Those that requests cannot fill keep their places.
    sig.arguments_mut()[1].skips = 1;
    assert_eq!(args(&sig, &["x", "mask"]), [Arg::Tensor(0), Arg::Default, Arg::Tensor(1), Arg::None]);
}

#[test]
fn keys_follow_trailing_shape_and_type() {
    let sig = signature(&[("x", ArgKind::Tensor, false)], "");
    let key = |dtype, shape: &[i64]| Binding::new(&sig, &[input("x", dtype, shape)], 8).unwrap().key;
    assert_eq!(key(DType::F32, &[1, 3]), key(DType::F32, &[4, 3]));
    assert_ne!(key(DType::F32, &[1, 3]), key(DType::F32, &[1, 4]));
    assert_ne!(key(DType::F32, &[1, 3]), key(DType::F64, &[1, 3]));
    assert_ne!(key(DType::F32, &[1, 3]), key(DType::F32, &[1, 3, 1]));
    assert_eq!(key(DType::F32, &[]), None, "a scalar cannot be joined");
}

#[test]
fn padded_dimensions_count_as_their_bucket() {
    let entry = |pad| format!("[[inputs]]\nname = 'x'\npad = {pad}");
    let sig = |pad| signature(&[("x", ArgKind::Tensor, false)], &entry(pad));
    let key = |sig: &Arc<Signature>, shape: &[i64]| {
        Binding::new(sig, &[input("x", DType::I64, shape)], 8).unwrap().key
    };
    let longest = sig("{dim = 1}");
    assert_eq!(key(&longest, &[1, 5, 2]), key(&longest, &[3, 8, 2]));
    assert_ne!(key(&longest, &[1, 4, 2]), key(&longest, &[1, 5, 2]));
    assert_ne!(key(&longest, &[1, 5, 2]), key(&longest, &[1, 5, 3]));
    let fixed = sig("{dim = 1, to = [16]}");
    assert_eq!(key(&fixed, &[1, 1]), key(&fixed, &[1, 16]));
    let three = [input("x", DType::I64, &[2, 3])];
    let bytes = Binding::new(&fixed, &three, 8).unwrap().padded_bytes(&three);
    assert_eq!(bytes, 2 * 16 * 8, "as it will run");
    assert_ne!(key(&fixed, &[1, 17]), key(&fixed, &[1, 18]), "longer than any bucket");
    assert_eq!(reason(Binding::new(&fixed, &[input("x", DType::I64, &[3])], 8)), Reason::WrongShape);
    let half = sig("{dim = 1, value = 0.5}");
    assert_eq!(reason(Binding::new(&half, &[input("x", DType::I64, &[1, 3])], 8)), Reason::WrongDatatype);
    assert!(Binding::new(&half, &[input("x", DType::F16, &[1, 3])], 8).is_ok());
}

#[test]
fn a_batch_has_one_number_of_rows_and_a_limit() {
    let sig = signature(&[("a", ArgKind::Tensor, false), ("b", ArgKind::Tensor, false)], "");
    let uneven = [input("a", DType::F32, &[2]), input("b", DType::F32, &[3])];
    assert_eq!(reason(Binding::new(&sig, &uneven, 8)), Reason::WrongShape);
    assert!(Binding::new(&sig, &uneven, 1).is_ok(), "not batched: rows are the model's business");
    let large = [input("a", DType::F32, &[9]), input("b", DType::F32, &[9])];
    assert_eq!(reason(Binding::new(&sig, &large, 8)), Reason::WrongShape);
}
