//! From what an archive says to what serving needs of it.

use std::path::Path;

use torchlane_archive::{self as archive, ArchiveError, TypeExpr};
use torchlane_model::{ArgKind, Argument, UnsupportedType};

use super::{ArchiveSummary, BackendError};

/// Reads the archive's signature and effects.
///
/// # Errors
/// Not a TorchScript archive with a `forward` that requests can fill.
pub fn of_archive(path: &Path) -> Result<ArchiveSummary, BackendError> {
    let named = |error: ArchiveError| BackendError::new(error.of(path));
    let info = archive::inspect(path).map_err(named)?;
    archive::check_entries(path).map_err(named)?;
    let Some(forward) = &info.forward else {
        return Err(BackendError::new("the module has no forward method"));
    };
    let arguments = arguments(&forward.arguments).map_err(|error| BackendError::new(error.to_string()))?;
    Ok(ArchiveSummary {
        arguments,
        outputs: outputs(&forward.returns),
        effect_free: !info.effects.any(),
        loops: info.loops,
        tensor_bytes: info.tensor_bytes(),
        stateful: info.state,
        training: info.trains,
        torch_version: info.torch_version,
        findings: info.findings,
        buffers: info.buffers.iter().map(|buffer| buffer.name.clone()).collect(),
        tensors: info.parameters.into_iter().chain(info.buffers).collect(),
    })
}

/// Looks whether it can be an archive.
///
/// # Errors
/// It can not, or not be read.
pub fn glance(path: &Path) -> Result<(), BackendError> {
    archive::glance(path).map_err(|error| BackendError::new(error.of(path)))
}

/// The arguments that requests can fill. The others must have defaults.
fn arguments(all: &[archive::Argument]) -> Result<Vec<Argument>, UnsupportedType> {
    let mut arguments = Vec::with_capacity(all.len());
    let mut skips = 0;
    for archive::Argument { name, ty, has_default } in all {
        match kind(ty) {
            Some(kind) => {
                let skips = std::mem::take(&mut skips);
                arguments.push(Argument {
                    name: name.as_str().into(),
                    kind,
                    has_default: *has_default,
                    skips,
                });
            }
            None if *has_default => skips += 1,
            None => {
                return Err(UnsupportedType { argument: name.clone(), script_type: ty.to_string() });
            }
        }
    }
    Ok(arguments)
}

fn kind(ty: &TypeExpr) -> Option<ArgKind> {
    Some(match ty {
        TypeExpr::Tensor => ArgKind::Tensor,
        TypeExpr::Int => ArgKind::Int,
        TypeExpr::Float | TypeExpr::Number => ArgKind::Float,
        TypeExpr::Bool => ArgKind::Bool,
        TypeExpr::Optional(inner) => ArgKind::Optional(Box::new(kind(inner)?)),
        TypeExpr::List(inner) if **inner == TypeExpr::Tensor => ArgKind::List,
        TypeExpr::Dict(key, value) if **key == TypeExpr::Str && **value == TypeExpr::Tensor => ArgKind::Dict,
        TypeExpr::Tuple(items) => ArgKind::Tuple(items.iter().map(kind).collect::<Option<_>>()?),
        _ => return None,
    })
}

/// Names of results, as far as the return type fixes them.
fn outputs(returns: &TypeExpr) -> Vec<String> {
    let numbered = |n: usize| (0..n).map(|i| format!("output_{i}")).collect();
    let plain =
        |ty: &TypeExpr| matches!(ty, TypeExpr::Tensor | TypeExpr::Int | TypeExpr::Float | TypeExpr::Bool);
    match returns {
        TypeExpr::NamedTuple { fields, .. } if fields.iter().all(|(_, ty)| plain(ty)) => {
            fields.iter().map(|(name, _)| name.clone()).collect()
        }
        TypeExpr::Tuple(items) if items.iter().all(plain) => numbered(items.len()),
        ty if plain(ty) => numbered(1),
        // A list, a dict, an optional or a nesting: known only when a pass has run.
        _ => Vec::new(),
    }
}
