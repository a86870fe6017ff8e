//! How our errors look to the SDK.

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
