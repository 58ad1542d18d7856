//! The command as its users run it, and as it is killed.

#[cfg(test)]
mod layout;
#[cfg(test)]
mod verbs;
