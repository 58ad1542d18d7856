//! openshell-vmm.
