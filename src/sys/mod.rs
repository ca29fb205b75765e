//! What the server asks of the operating system, thin and behind safe functions.
//!
//! Imports nothing above [`crate::types`]. Absent on purpose: making sockets (that belongs to `http`) and files (to `journal`).

pub mod affinity;
pub mod child;
pub mod clock;
pub mod lock;
pub mod open_files;
pub mod paced;
pub mod service_manager;
pub mod signals;
pub mod socket;
pub mod vital;
