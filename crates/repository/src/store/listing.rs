//! The names in a store: of all its objects, or of those of one model.
//!
//! A bucket is a shared place: any program may put any key into it. A key that cannot be a file here is skipped with one line
//! in the log, and nothing else changes. The client library fails a whole page for such a key, so the page is then asked for in
//! smaller parts until the key stands alone.

use std::collections::HashSet;

use futures::TryStreamExt as _;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _,
    limit::LimitStore,
    list::{PaginatedListOptions, PaginatedListStore},
    path::{Error as InvalidPath, Path as Location},
};
use parking_lot::Mutex;
use torchlane_model::{
    ModelName,
    error::{Reason, shown},
};

use super::{
    address::{Address, Pages},
    error::FetchError,
    index::{self, INDEX, MAX_INDEX_BYTES},
    layout::Listed,
};

/// Requests to one store at once.
const REQUESTS: usize = 16;

/// Keys in a page, as S3 has it.
const PAGE: usize = 1000;

/// More odd keys than this are not named in the log.
const NAMED: usize = 1000;

/// A store, and where in it the repository begins.
pub(super) struct Remote {
    pub(super) client: LimitStore<Box<dyn ObjectStore>>,
    pages: Option<Pages>,
    prefix: Location,
    /// For people.
    pub(super) shown: String,
    pub(super) scheme: &'static str,
    /// Odd keys that the log has named.
    named: Mutex<HashSet<String>>,
}

impl Remote {
    pub(super) fn new(address: Address) -> Self {
        let Address { client, pages, prefix, shown, scheme } = address;
        let client = LimitStore::new(client, REQUESTS);
        Self { client, pages, prefix, shown, scheme, named: Mutex::default() }
    }

    /// Where an object is that was listed as `path`. Its name is taken as it is: encoding it is the client's work.
    ///
    /// # Errors
    /// No object can have that name.
    pub(super) fn location(&self, path: &str) -> Result<Location, FetchError> {
        let whole =
            if self.prefix.as_ref().is_empty() { path.to_owned() } else { format!("{}/{path}", self.prefix) };
        Location::parse(whole)
            .map_err(|error| FetchError::new(Reason::LoadFailed, format!("{}/{path}: {error}", self.shown)))
    }

    /// All objects, or those of one model.
    pub(super) async fn list(&self, model: Option<&ModelName>) -> Result<Vec<Listed>, FetchError> {
        let failed = |error: object_store::Error| FetchError::store(&self.shown, &error);
        if self.scheme == "http" {
            match self.client.get(&self.location(INDEX)?).await {
                Ok(answer) if answer.meta.size > MAX_INDEX_BYTES => {
                    let message = format!("{}/{INDEX} is over {MAX_INDEX_BYTES} bytes", self.shown);
                    return Err(FetchError::new(Reason::LoadFailed, message));
                }
                Ok(answer) => {
                    let text = answer.bytes().await.map_err(failed)?;
                    return index::parse(&text, &mut |path| self.skip(path))
                        .map_err(|why| FetchError::new(Reason::LoadFailed, format!("{}/{why}", self.shown)));
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let prefix = match model {
            Some(name) => self.location(name.as_str())?,
            None => self.prefix.clone(),
        };
        let mut metas = match &self.pages {
            Some(pages) => {
                objects(pages.as_ref(), &prefix, &mut |key| self.skip(key)).await.map_err(failed)?
            }
            None => self.client.list(Some(&prefix)).try_collect().await.map_err(failed)?,
        };
        if let Some(name) = model {
            match self.client.head(&self.location(&format!("{name}.pt"))?).await {
                Ok(meta) => metas.push(meta),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(metas.into_iter().filter_map(|meta| self.listed(meta)).collect())
    }

    fn listed(&self, meta: ObjectMeta) -> Option<Listed> {
        let path: Vec<_> =
            meta.location.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(Listed {
            path: path.join("/"),
            size: meta.size,
            tag: meta.e_tag,
            modified: meta.last_modified.timestamp_millis(),
            sha256: None,
        })
    }

    /// One line for each key that is skipped.
    fn skip(&self, key: &str) {
        let mut named = self.named.lock();
        if named.len() < NAMED && named.insert(key.to_owned()) {
            let key = format!("{key:?}");
            tracing::warn!(
                target: "torchlane::store", key = %shown(&key, 512),
                "skipped in {}: no file can have this name. Rename or remove the object", self.shown
            );
        }
    }
}

/// Every object below `prefix` whose key can be a path; `odd` gets the other keys.
async fn objects(
    pages: &dyn PaginatedListStore,
    prefix: &Location,
    odd: &mut (dyn FnMut(&str) + Send),
) -> object_store::Result<Vec<ObjectMeta>> {
    let prefix = Some(prefix.as_ref()).filter(|prefix| !prefix.is_empty()).map(|prefix| format!("{prefix}/"));
    let mut all: Vec<ObjectMeta> = Vec::new();
    // Pages follow each other by the store's own tokens. After an odd key they begin behind a key instead.
    let (mut page_token, mut offset, mut most) = (None, None::<String>, PAGE);
    loop {
        let options = PaginatedListOptions {
            offset: offset.clone().filter(|offset| !offset.is_empty()),
            max_keys: (most < PAGE).then_some(most),
            page_token: page_token.clone(),
            ..PaginatedListOptions::default()
        };
        match pages.list_paginated(prefix.as_deref(), options).await {
            Ok(page) => {
                let last = page.result.objects.last().map(|object| object.location.to_string());
                all.extend(page.result.objects);
                if page.page_token.is_none() {
                    // What marks a folder was met twice where a page began behind it.
                    all.sort_by(|one, other| one.location.cmp(&other.location));
                    all.dedup_by(|one, other| one.location == other.location);
                    return Ok(all);
                }
                if offset.is_none() {
                    page_token = page.page_token;
                    continue;
                }
                // A key that ends in `/` comes without it: going on from there would not move on.
                offset = match (last, offset) {
                    (Some(last), Some(before)) if last <= before => Some(format!("{last}/")),
                    (last, before) => last.or(before),
                };
                most = (most * 2).min(PAGE);
            }
            Err(object_store::Error::InvalidPath { source }) => {
                let Some(key) = key_of(&source) else {
                    return Err(object_store::Error::InvalidPath { source });
                };
                if page_token.take().is_some() || offset.is_none() {
                    // All that was listed before has come whole.
                    offset = Some(all.last().map(|object| object.location.to_string()).unwrap_or_default());
                }
                if most > 1 {
                    most /= 2;
                    continue;
                }
                if offset.as_deref() == Some(key) {
                    return Err(object_store::Error::InvalidPath { source });
                }
                odd(key);
                offset = Some(behind(key));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where to go on behind an odd key. If a folder makes it odd, all keys in that folder are odd, and one line is enough for them.
fn behind(key: &str) -> String {
    let mut end = 0;
    for segment in key.split_inclusive('/') {
        end += segment.len();
        let is_odd = segment == "/" || Location::parse(segment).is_err();
        if let Some(folder) = key.get(..end).filter(|folder| is_odd && folder.ends_with('/')) {
            return format!("{folder}{}", char::MAX);
        }
    }
    key.to_owned()
}

/// The key that cannot be a path.
fn key_of(error: &InvalidPath) -> Option<&str> {
    match error {
        InvalidPath::EmptySegment { path } | InvalidPath::BadSegment { path, .. } => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::future::BoxFuture;
    use object_store::{ListResult, list::PaginatedListResult};
    use proptest::prelude::*;

    use super::*;

    /// Lists keys as S3 does, and fails a page for an odd key as the client library does.
    struct Keys(BTreeSet<String>);

    impl Keys {
        fn page(
            &self,
            prefix: Option<&str>,
            options: PaginatedListOptions,
        ) -> object_store::Result<PaginatedListResult> {
            let after = options.page_token.or(options.offset).unwrap_or_default();
            let most = options.max_keys.unwrap_or(7);
            let rest: Vec<_> = self
                .0
                .iter()
                .filter(|key| key.starts_with(prefix.unwrap_or_default()) && **key > after)
                .collect();
            let page: Vec<_> = rest.iter().take(most).collect();
            let objects = page
                .iter()
                .map(|key| {
                    Ok(ObjectMeta {
                        location: Location::parse(key)?,
                        last_modified: Default::default(),
                        size: 1,
                        e_tag: None,
                        version: None,
                    })
                })
                .collect::<object_store::Result<_>>()?;
            let page_token = (rest.len() > most).then(|| page.last().unwrap().to_string());
            let result = ListResult { common_prefixes: Vec::new(), objects, extensions: Default::default() };
            Ok(PaginatedListResult { result, page_token })
        }
    }

    impl PaginatedListStore for Keys {
        fn list_paginated<'a, 'b, 'c>(
            &'a self,
            prefix: Option<&'b str>,
            options: PaginatedListOptions,
        ) -> BoxFuture<'c, object_store::Result<PaginatedListResult>>
        where
            'a: 'c,
            'b: 'c,
        {
            Box::pin(async move { self.page(prefix, options) })
        }
    }

    proptest! {
        #[test]
        fn odd_keys_cost_nothing_else(
            keys in proptest::collection::btree_set("p/[a./\u{1}]{1,4}", 0..40),
            good in proptest::collection::btree_set("p/[b-f]{1,3}", 0..40),
        ) {
            let keys: BTreeSet<String> = keys.into_iter().chain(good).collect();
            let (fits, odd): (BTreeSet<_>, BTreeSet<_>) =
                keys.iter().cloned().partition(|key| Location::parse(key).is_ok());
            let mut skipped = BTreeSet::new();
            let listed = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(objects(
                &Keys(keys), &Location::from("p"), &mut |key| skipped.extend([key.to_owned()]),
            )).unwrap();
            let names: Vec<_> = listed.iter().map(|object| object.location.to_string()).collect();
            let expected: BTreeSet<_> =
                fits.iter().map(|key| Location::parse(key).unwrap().to_string()).collect();
            prop_assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), expected);
            prop_assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "each once");
            prop_assert!(skipped.is_subset(&odd) && skipped.is_empty() == odd.is_empty(), "{:?}", skipped);
        }
    }
}
