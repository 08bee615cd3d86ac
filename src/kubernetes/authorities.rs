//! Which authorities are published: those that the catalog trusts. Pure.
//!
//! A pod that was away knows old ones, and one that is behind does not know a new one yet. So
//! nobody publishes what it knows by itself: the catalog names the authorities by their
//! fingerprints, and their certificates come from what is published already and from what the pod
//! has.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::security::secret::to_hex;
use crate::security::token::sha256;

const END: &str = "-----END CERTIFICATE-----\n";

/// What the catalog says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// SHA-256 of each authority's certificate, hexadecimal. The one that signs is the first.
    pub fingerprints: Vec<String>,
    /// The catalog was restored, and others may be in use.
    pub others: bool,
}

/// The list to publish, PEM. `before`: what is published. `own`: what this pod has. Without the
/// catalog's word, what is published stays.
pub fn published(before: &str, own: &str, told: Option<&Told>) -> String {
    let Some(told) = told else {
        return if before.is_empty() { own.to_owned() } else { before.to_owned() };
    };
    let known: Vec<(Option<String>, &str)> =
        [before, own].into_iter().flat_map(|all| all.split_inclusive(END)).map(read).collect();
    let of = |wanted: &String| known.iter().find(|(found, _)| found.as_ref() == Some(wanted));
    let mut all: String = told.fingerprints.iter().filter_map(of).map(|(_, pem)| *pem).collect();
    if told.others || all.is_empty() {
        for (_, pem) in known {
            if !all.contains(pem) {
                all.push_str(pem);
            }
        }
    }
    all
}

fn read(pem: &str) -> (Option<String>, &str) {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    (der.ok().map(|der| to_hex(&sha256(&der))), pem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::files::pem;

    /// An authority, as far as this file looks at it: PEM and fingerprint.
    fn authority(name: &str) -> (String, String) {
        let pem = pem("CERTIFICATE", name.as_bytes());
        (String::from_utf8(pem.expose().to_vec()).unwrap(), to_hex(&sha256(name.as_bytes())))
    }

    #[test]
    fn what_the_catalog_trusts_is_published_and_nothing_else() {
        let ((one, id_one), (two, id_two)) = (authority("one"), authority("two"));
        let both = format!("{one}{two}");
        let told = |ids: &[&String]| Told {
            fingerprints: ids.iter().map(|id| (*id).clone()).collect(),
            others: false,
        };
        let published =
            |before: &str, own: &str, told: &Told| super::published(before, own, Some(told));
        assert_eq!(published("", &one, &told(&[&id_one])), one);
        assert_eq!(published(&one, &both, &told(&[&id_one, &id_two])), both);
        // The new one signs, and then the old one is gone.
        let turned = format!("{two}{one}");
        assert_eq!(published(&both, &one, &told(&[&id_two, &id_one])), turned);
        assert_eq!(published(&turned, &both, &told(&[&id_two])), two);
        // A pod that was away does not bring it back, and leaves what it does not know.
        assert_eq!(published(&two, &one, &told(&[&id_two])), two);
        // It has not got the new one yet: what there is is better than nothing.
        assert_eq!(published(&one, &one, &told(&[&id_two])), one);
        let restored = Told { others: true, ..told(&[&id_two]) };
        assert_eq!(published(&one, &two, &restored), turned);
    }

    #[test]
    fn without_the_catalogs_word_nothing_changes() {
        let (one, two) = (authority("one").0, authority("two").0);
        assert_eq!(published(&two, &one, None), two);
        assert_eq!(published("", &one, None), one);
    }
}
