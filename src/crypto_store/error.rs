//! Conversion to the SDK's error type.

use matrix_sdk_crypto::CryptoStoreError;

use crate::Error;

impl From<Error> for CryptoStoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::AccountUnset => Self::AccountUnset,
            other => Self::backend(other),
        }
    }
}
