//! Whatever the bytes, there is a value or an error, never a panic.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::lexer::Lexer;
use super::super::pickle::Pickle;
use super::super::safety::Danger;
use super::{entries, inspect_bytes, module_pickle, testdata, zipped};

static WRITTEN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    ["net.pt", "traced.pt", "frozen.pt", "state_dict.pt"]
        .map(|name| std::fs::read(testdata(name)).unwrap())
        .to_vec()
});

/// The pickle in `net.pt`, which is stored uncompressed.
static PICKLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&WRITTEN[0])).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut zip.by_name("net/data.pkl").unwrap(), &mut bytes).unwrap();
    bytes
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..2000), as_zip in any::<bool>()) {
        let bytes = if as_zip { [b"PK\x03\x04".as_slice(), &bytes].concat() } else { bytes };
        prop_assert!(inspect_bytes(&bytes).is_err());
    }

    #[test]
    fn flipped_bytes(which in 0..4_usize, flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = WRITTEN[which].clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        drop(inspect_bytes(&bytes));
    }

    #[test]
    fn flips_in_the_directory(which in 0..4_usize, flips in vec((0..4000_usize, any::<u8>()), 1..4)) {
        let mut bytes = WRITTEN[which].clone();
        for (back, value) in flips {
            let at = bytes.len().saturating_sub(1 + back);
            bytes[at] = value;
        }
        drop(inspect_bytes(&bytes));
    }

    #[test]
    fn cut_or_doubled(which in 0..4_usize, from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let whole = &WRITTEN[which];
        let (from, to) = (from.index(whole.len()), to.index(whole.len()));
        let bytes = [&whole[..from], &whole[to..]].concat();
        drop(inspect_bytes(&bytes));
    }

    #[test]
    fn pickles_with_flips_behind_a_right_checksum(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut pickle = PICKLE.clone();
        for (at, value) in flips {
            let at = at.index(pickle.len());
            pickle[at] = value;
        }
        drop(inspect_bytes(&zipped(&entries(super::IDENTITY, pickle))));
    }

    #[test]
    fn random_pickles(bytes in vec(prop::sample::select(b"(.0NK\x01X\0)\x85\x86\x87t]aeq}hsuRbQ\x81c\nJM\x88G\x8al d".as_slice()), 0..200)) {
        drop(Pickle::parse(&bytes, "data.pkl"));
    }

    #[test]
    fn random_code(code in "[a-z_\\.\\(\\)\\[\\]=:,;\"'#\\\\ \n\r\t0-9é+\\-]{0,300}") {
        let mut lexer = Lexer::new(&code);
        while let Ok(Some(_)) = lexer.next_line() {}
        let code = format!("class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    {code}\n");
        drop(inspect_bytes(&zipped(&entries(&code, module_pickle(b"")))));
    }

    #[test]
    fn random_declarations(code in "(class|def) [A-Za-z(\\):,\\[\\]\"=_\n >\\-\\.]{0,200}") {
        drop(inspect_bytes(&zipped(&entries(&format!("{}{code}", super::IDENTITY), module_pickle(b"")))));
    }

    /// Wherever it stands in whatever else, the name of an operator that opens files is found, or nothing is known.
    #[test]
    fn a_dangerous_name_is_never_lost(before in "[a-z_\\.\\(\\)\\[\\]=:,#\\\\ \n0-9+\\-]{0,40}", after in "[a-z_\\.\\(\\)=,\"' \n]{0,40}") {
        let call = format!("{before}\n    y = torch.from_file(x)\n    {after}\n");
        let code = format!("class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\ndef f(x: Tensor) -> Tensor:\n    {call}");
        if let Ok(info) = inspect_bytes(&zipped(&entries(&code, module_pickle(b"")))) {
            let found = info.findings.iter().any(|f| f.what == "aten::from_file" || f.danger == Danger::Unreadable);
            prop_assert!(found, "{:?} in {code:?}", info.findings);
        }
    }

    /// A tokenizer that loses a letter would lose an effect.
    #[test]
    fn every_letter_is_in_a_token(code in "[a-z_\\.\\(\\)=:,1-9+\\- ]{0,100}") {
        let mut lexer = Lexer::new(&code);
        let mut seen = String::new();
        let mut failed = false;
        loop {
            match lexer.next_line() {
                Ok(Some(line)) => seen.extend(line.tokens.iter().map(|token| token.text())),
                Ok(None) => break,
                Err(_) => { failed = true; break; }
            }
        }
        prop_assert!(failed || seen == code.replace(' ', ""));
    }
}
