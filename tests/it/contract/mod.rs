//! Rules derived from bugs of other stores, tested through `CryptoStore`.

mod backup;
mod damaged_rows;
mod hostile_ids;
mod key_requests;
mod leases;
mod paging;
mod same_key_again;
mod swapped_rows;
